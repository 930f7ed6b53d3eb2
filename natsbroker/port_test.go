package natsbroker

import (
	"errors"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// An embedded server has to have a port for clients, and refuses all of them.
func TestEmbeddedHasNoClients(t *testing.T) {
	b, err := Embedded("realtime", Config{Logger: slog.New(slog.DiscardHandler)})
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

// A node alone flushes each record, and a node among others as the server does by
// default, unless Sync says otherwise.
func TestSync(t *testing.T) {
	routes := []string{"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"}
	for _, test := range []struct {
		config Config
		always bool
		every  time.Duration
	}{
		{Config{}, true, 0},
		{Config{Sync: -1}, true, 0},
		{Config{Sync: time.Second}, false, time.Second},
		{Config{Listen: "127.0.0.1:0", Routes: routes}, false, 0},
		{Config{Listen: "127.0.0.1:0", Routes: routes, Sync: -1}, true, 0},
		{Config{Listen: "127.0.0.1:0", Routes: routes, Sync: time.Second}, false, time.Second},
	} {
		test.config.StoreDir = t.TempDir()
		o, err := test.config.options()
		if err != nil {
			t.Fatal(err)
		}
		if o.SyncAlways != test.always || o.SyncInterval != test.every {
			t.Errorf("%+v: always %t, every %v, want %t, %v", test.config, o.SyncAlways, o.SyncInterval, test.always, test.every)
		}
	}
	b, err := Embedded("realtime", Config{StoreDir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if c := b.host.running().JetStreamConfig(); !c.SyncAlways {
		t.Error("the server of a node alone doesn't flush each record")
	}
}
