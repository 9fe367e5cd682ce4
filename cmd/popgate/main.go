// Command popgate is POP before SMTP: a client that has just logged in to POP
// or IMAP may relay mail from the same address for a while. It is a milter for
// Postfix and sendmail that reads the POP/IMAP server's log, and the commands
// to see and steer it. popgate(8) and `popgate help` tell the rest.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	e := processEnv()
	e.giveWay = giveWay
	code := run(ctx, os.Args[1:], e)
	stop()
	os.Exit(code)
}
