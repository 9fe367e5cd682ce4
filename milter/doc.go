// Package milter is the door by which sendmail and Postfix ask at every
// recipient whether its client may relay. It carries what the MTA told to a
// Judge and the Judge's decision back, and holds no rule of its own.
//
// It promises:
//
//   - Every recipient is judged. The answer "continue" to RCPT is given for a
//     decision whose verdict is pass and for nothing else: a panic, a verdict
//     nobody knows and a reply that can't be sent all end as 451.
//   - Only "continue" and reply codes are ever sent. "Accept" would tell
//     Postfix to stop asking about the rest of the message.
//   - The client address is that of the connection's one CONNECT packet, for
//     the first message and the thousandth; what belongs to a transaction ends
//     with it, and macros sent for one recipient are never those of the next.
//   - A bad packet, a slow peer or a panic costs that one connection, and
//     nothing a peer sends reaches a log.
//
// It does not authenticate the MTA: whoever can open the socket can ask, and
// is believed about who the client is.
//
// The protocol engine is github.com/emersion/go-milter. A session of its reads
// from a worker, which hands it whole, checked packets, so that the library's own
// complaints, which go to the global log, never arise:
//
//	MTA ─▶ socket ─▶ loop ─▶ conn ─▶ worker ─▶ library ─▶ session ─▶ Judge
//	                (epoll) (packets)                   (of the conn)
//
// A loop waits for many connections with one worker. One that waits costs its
// conn and nothing else: no goroutine, no stack, no buffer. So a Judge that waits
// without saying so keeps all of a loop's connections waiting.
package milter
