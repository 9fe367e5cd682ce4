package main

import (
	"fmt"
	"io"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"popgate/man"
)

func newMan(e *env) *cobra.Command {
	pages := map[string]string{"popgate": man.Popgate, "milter.yaml": man.MilterYAML}
	return &cobra.Command{
		Use:   "man [popgate|milter.yaml]",
		Short: "Show the manual page of popgate or of its configuration",
		Long: "man shows the manual page that belongs to this binary. On a terminal it is formatted, where\n" +
			"mandoc(1) or man(1) can be had; else its mdoc source is printed.",
		Example:               "  popgate man\n  popgate man milter.yaml > /usr/local/share/man/man5/milter.yaml.5",
		ValidArgs:             []string{"popgate", "milter.yaml"},
		Args:                  cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		DisableFlagsInUseLine: true,
		RunE: func(c *cobra.Command, args []string) error {
			page := pages["popgate"]
			if len(args) == 1 {
				page = pages[args[0]]
			}
			if isTerminal(e.stdout) && formatted(c, e, page) {
				return nil
			}
			_, err := io.WriteString(e.stdout, page)
			return err
		},
	}
}

// formatted shows a page through whatever formats mdoc on this host, with its
// pager. It says no when nothing was shown.
func formatted(c *cobra.Command, e *env, page string) bool {
	for _, viewer := range [][]string{{"mandoc", "-a"}, {"man", "-l", "-"}} {
		cmd := exec.CommandContext(c.Context(), viewer[0], viewer[1:]...)
		cmd.Stdin, cmd.Stdout = strings.NewReader(page), e.stdout
		if cmd.Run() == nil {
			return true
		}
	}
	fmt.Fprintln(e.stderr, "popgate: there is no mandoc(1) nor man(1) that formats the page, so this is its source")
	return false
}
