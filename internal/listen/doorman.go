package listen

import (
	"net"
	"sync"
)

// Doorman is a listener for servers that accept by themselves, as net/http's
// do: it lets in only who may, and only so many at once. Whatever is short at
// the moment, such a server asks again after a pause, and never ends for it.
type Doorman struct {
	net.Listener
	admit  func(net.Conn) (leave func(), ok bool)
	missed func()
	places chan struct{}
}

// NewDoorman puts a doorman before a listener. may says who may come in; it may
// tell one who may not the reason, if that takes no time. missed is told when
// somebody is hung up on for want of a place, or can't be accepted at all; nil:
// they wait in the listener's queue.
func NewDoorman(ln net.Listener, places int, may func(net.Conn) bool, missed func()) *Doorman {
	return NewCountingDoorman(ln, places, func(c net.Conn) (func(), bool) { return func() {}, may(c) }, missed)
}

// NewCountingDoorman is NewDoorman for who counts his guests himself: he is told
// by leave when one that he admitted has gone.
func NewCountingDoorman(ln net.Listener, places int, admit func(net.Conn) (leave func(), ok bool), missed func()) *Doorman {
	return &Doorman{Listener: ln, admit: admit, missed: missed, places: make(chan struct{}, places)}
}

// Accept gives the next connection that may come in.
func (d *Doorman) Accept() (net.Conn, error) {
	waits := d.missed == nil
	if waits {
		d.places <- struct{}{}
	}
	for {
		c, err := d.Listener.Accept()
		switch {
		case err != nil && waits:
			<-d.places
			return nil, passing(err)
		case err != nil:
			if err = passing(err); !broken(err) {
				d.missed()
			}
			return nil, err
		}
		if leave, ok := d.admit(c); ok {
			if waits || d.take() {
				return &Guest{Conn: c, leave: sync.OnceFunc(func() { leave(); <-d.places })}, nil
			}
			leave()
			d.missed()
		}
		_ = c.Close()
	}
}

// take takes a place if there is one.
func (d *Doorman) take() bool {
	select {
	case d.places <- struct{}{}:
		return true
	default:
		return false
	}
}

// Guest is a connection that a Doorman let in. It gives its place back when it
// is closed.
type Guest struct {
	net.Conn
	leave func()
}

// Close ends the connection.
func (g *Guest) Close() error {
	defer g.leave()
	return g.Conn.Close()
}

// passing marks an error of accept that is not the listener's end. net/http
// knows only some of them by itself, and ends its server with the others.
func passing(err error) error {
	if broken(err) {
		return err
	}
	return shortage{err}
}

// shortage is an error after which accept is to be tried again.
type shortage struct{ error }

func (shortage) Timeout() bool   { return false }
func (shortage) Temporary() bool { return true }
func (s shortage) Unwrap() error { return s.error }
