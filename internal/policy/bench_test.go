package policy

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"testing"

	"popgate/internal/relay"
)

// granter passes every client without being asked twice.
type granter struct{}

func (granter) JudgeClient(context.Context, *relay.Query) relay.Decision {
	return relay.Decision{Verdict: relay.Pass, Reason: relay.ReasonGrant}
}

// BenchmarkAnswer is one question without its transport.
func BenchmarkAnswer(b *testing.B) {
	for _, bb := range []struct {
		name     string
		language language
		question string
	}{
		{"policy", &delegation{judge: granter{}}, asPostfix(bob)},
		{"socketmap", &socketMap{judge: granter{}}, netstring("popgate " + bob)},
	} {
		b.Run(bb.name, func(b *testing.B) {
			question, answer := []byte(bb.question), []byte(nil)
			b.ReportAllocs()
			for b.Loop() {
				n, _ := bb.language.whole(question)
				answer, _ = bb.language.answer(b.Context(), answer[:0], question[:n])
			}
		})
	}
}

// BenchmarkRoundTrip is one question over a unix socket, on one connection.
func BenchmarkRoundTrip(b *testing.B) {
	for i := range doors {
		door := &doors[i]
		b.Run(door.name, func(b *testing.B) {
			ln, err := net.Listen("unix", filepath.Join(b.TempDir(), "s"))
			if err != nil {
				b.Fatal(err)
			}
			ctx, stop := context.WithCancel(b.Context())
			ended := make(chan error, 1)
			go func() { ended <- door.make(granter{}, Options{}).Serve(ctx, ln) }()
			c, err := net.Dial("unix", ln.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			answer := make([]byte, len(door.yes))
			b.ReportAllocs()
			for b.Loop() {
				_, _ = io.WriteString(c, door.ask)
				if _, err := io.ReadFull(c, answer); err != nil || string(answer) != door.yes {
					b.Fatalf("%q %v", answer, err)
				}
			}
			c.Close()
			stop()
			if err := <-ended; err != nil {
				b.Error(err)
			}
		})
	}
}
