package wiring

import (
	"net"
	"path/filepath"
	"strings"
)

// The ways in which an MTA asks.
const (
	Milter    = "milter"
	Policy    = "policy"
	SocketMap = "socketmap"
)

// Door is a place where an MTA asks popgate.
type Door struct {
	Kind    string `json:"kind"` // milter, policy, socketmap
	MTA     string `json:"mta"`
	Version string `json:"version,omitempty"`
	Spec    string `json:"spec"`           // the address as the MTA's configuration has it
	Network string `json:"network"`        // unix, tcp
	Address string `json:"address"`        // as this host sees it: of a unix socket, with the chroot in front
	Root    string `json:"root,omitempty"` // the MTA's process lives in this chroot; empty: in none
	User    string `json:"user"`           // whom the MTA's process runs as
	Map     string `json:"map,omitempty"`  // of a socket map: its name
}

// Ours tells whether an address of the MTA's is popgate's. Network and address
// are as in Door.
type Ours func(kind, network, address string) bool

// postfixAddress reads an address of smtpd's: unix:path, inet:host:port, and
// the milters' inet:port@host. A path is below the queue directory if it is
// relative, and in the chroot if there is one.
func postfixAddress(spec, queue string, chroot bool) (network, address string, ok bool) {
	kind, rest, _ := strings.Cut(spec, ":")
	switch kind {
	case "unix", "local":
		if rest == "" {
			return "", "", false
		}
		if chroot || !strings.HasPrefix(rest, "/") {
			rest = filepath.Join(queue, rest)
		}
		return "unix", rest, true
	case "inet", "inet6":
		return tcpAddress(rest)
	}
	return "", "", false
}

// sendmailAddress reads local:path, unix:path, inet:port@host.
func sendmailAddress(spec string) (network, address string, ok bool) {
	kind, rest, found := strings.Cut(spec, ":")
	switch {
	case !found && strings.HasPrefix(spec, "/"):
		return "unix", spec, true
	case kind == "unix" || kind == "local":
		return "unix", rest, rest != ""
	case kind == "inet" || kind == "inet6":
		return tcpAddress(rest)
	}
	return "", "", false
}

func tcpAddress(rest string) (network, address string, ok bool) {
	if port, host, found := strings.Cut(rest, "@"); found {
		return "tcp", net.JoinHostPort(strings.Trim(host, "[]"), port), port != ""
	}
	i := strings.LastIndexByte(rest, ':')
	if i < 0 {
		return "tcp", net.JoinHostPort("localhost", rest), rest != ""
	}
	return "tcp", net.JoinHostPort(strings.Trim(rest[:i], "[]"), rest[i+1:]), rest[i+1:] != ""
}
