package metrics

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"popgate/internal/listen"
)

// Options are what Serve shows, and to whom.
type Options struct {
	Snapshot func() Snapshot // asked once a scrape
	Problems func() []string // as status lists them
	// Allow says which addresses may connect over TCP; who may use a unix
	// socket is for its mode to say.
	Allow func(netip.Addr) bool
	Log   *log.Logger
}

const (
	maxConns   = 32 // a few scrapers; more are kept waiting
	timeLimit  = 10 * time.Second
	idleLimit  = 2 * time.Minute // above the usual pause between scrapes
	drainLimit = time.Second
)

// admits says whether a peer may connect.
func (o *Options) admits(c net.Conn) bool {
	a, tcp := c.RemoteAddr().(*net.TCPAddr)
	return !tcp || o.Allow(a.AddrPort().Addr())
}

// Serve answers on ln until ctx ends.
func Serve(ctx context.Context, ln net.Listener, o Options) error {
	srv := &http.Server{Handler: handler(o), ReadHeaderTimeout: timeLimit, ReadTimeout: timeLimit, WriteTimeout: 2 * timeLimit,
		IdleTimeout: idleLimit, MaxHeaderBytes: 16 << 10, ErrorLog: o.Log}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainLimit)
		defer cancel()
		if srv.Shutdown(end) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(listen.NewDoorman(ln, maxConns, o.admits, nil))
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("metrics listener: %w", err)
}

func handler(o Options) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{o.Snapshot}, &kept{of: collectors.NewGoCollector()},
		&kept{of: collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog: o.Log, MaxRequestsInFlight: 4, Timeout: timeLimit,
		DisableCompression: true, // ten kilobytes are sent sooner than compressed
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { health(w, o.Problems()) })
	return mux
}

// health answers 200 when the daemon is well and 503 with the problems when
// it is degraded.
func health(w http.ResponseWriter, problems []string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if len(problems) == 0 {
		fmt.Fprintln(w, "ok")
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	fmt.Fprintln(w, "degraded")
	for _, p := range problems {
		fmt.Fprintln(w, p)
	}
}
