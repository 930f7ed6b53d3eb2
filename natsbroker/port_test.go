package natsbroker

import (
	"errors"
	"log/slog"
	"net"
	"testing"

	"github.com/nats-io/nats.go"
)

// An embedded server has to have a port for clients, and refuses all of them.
func TestEmbeddedHasNoClients(t *testing.T) {
	b, err := Embedded(Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	if !b.host.running().Addr().(*net.TCPAddr).IP.IsLoopback() {
		t.Errorf("it listens at %v, want a loopback address", b.host.running().Addr())
	}
	conn, err := nats.Connect(b.host.running().ClientURL())
	if !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("a client: %v, want ErrAuthorization", err)
		conn.Close()
	}
}
