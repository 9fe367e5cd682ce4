package watcher

import "popgate/watcher/format"

// mayBeCut says whether a message has about the length at which daemons cut,
// either as it came or as the server's own syslog call had sent it, without a
// host and with a short stamp. Cut behind the right byte, a line about a failed
// login can read like one about a good one.
func mayBeCut(line []byte, m *format.Message) bool {
	return format.CutLength(len(line)) || format.CutLength(format.PriorityLen(line)+m.SentLen())
}
