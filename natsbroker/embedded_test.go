package natsbroker_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime/natsbroker"
)

// newEmbedded starts a broker with a server of its own. It returns the broker and
// the log of the messages of topic "x" that others publish.
func newEmbedded(t *testing.T, config natsbroker.Config) (*natsbroker.Broker, *log) {
	t.Helper()
	b, err := natsbroker.Embedded("realtime", config)
	if err != nil {
		t.Fatal(err)
	}
	got := new(log)
	start(t, b, got)
	return b, got
}

// A buffer may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestEmbeddedAlone(t *testing.T) {
	var config natsbroker.Config
	b, got := newEmbedded(t, config)
	publish(t, b, "nobody gets it")
	if addr := b.ClusterAddr(); addr != "" {
		t.Errorf("it listens at %s", addr)
	}
	if lines := got.all(); len(lines) > 0 {
		t.Errorf("got %q", lines)
	}
	unused, err := natsbroker.Embedded("realtime", config)
	if err != nil {
		t.Fatal(err)
	}
	if err := unused.Close(); err != nil {
		t.Error(err)
	}
}

// Messages that were published before Close arrive.
func TestEmbeddedClose(t *testing.T) {
	config := natsbroker.Config{Listen: "127.0.0.1:0"}
	a, got := newEmbedded(t, config)
	config.Routes = []string{a.ClusterAddr()}
	b, _ := newEmbedded(t, config)
	got.reach(t, b)
	const messages = 20_000
	for i := range messages {
		publish(t, b, fmt.Sprint(i, strings.Repeat(" ", 1000)))
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "last message", func() bool { return len(got.all()) == messages })
}

func TestEmbeddedConfig(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, test := range []struct {
		config natsbroker.Config
		want   string
	}{
		{natsbroker.Config{Routes: []string{"127.0.0.1:1"}}, "no Listen"},
		{natsbroker.Config{Listen: ":0"}, "set Secret or TLS"},
		{natsbroker.Config{Listen: "0.0.0.0:0"}, "set Secret or TLS"},
		{natsbroker.Config{Listen: "127.0.0.1"}, "missing port"},
		{natsbroker.Config{Listen: "127.0.0.1:0", Routes: []string{"127.0.0.1"}}, "missing port"},
		{natsbroker.Config{Listen: taken.Addr().String()}, "address already in use"},
	} {
		b, err := natsbroker.Embedded("realtime", test.config)
		if err == nil {
			b.Close()
			t.Errorf("%+v: no error, want %s", test.config, test.want)
		} else if !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v, want %s", test.config, err, test.want)
		}
	}
}

// A server without the secret is refused. The logs of both sides say so, and
// don't contain the secret.
func TestEmbeddedSecret(t *testing.T) {
	t.Parallel() // the test mostly waits
	var logged buffer
	config := natsbroker.Config{Listen: "127.0.0.1:0", Secret: "right", Logger: slog.New(slog.NewTextHandler(&logged, nil))}
	a, got := newEmbedded(t, config)
	config.Routes = []string{a.ClusterAddr()}
	config.Secret = "wrong"
	b, _ := newEmbedded(t, config)
	publish(t, b, "outside")
	config.Secret = "right"
	c, _ := newEmbedded(t, config)
	got.reach(t, c)
	publish(t, c, "inside")
	eventually(t, "message", func() bool { return got.has("inside") })
	if lines := got.all(); len(lines) != 1 {
		t.Errorf("got %q", lines)
	}
	eventually(t, "line about the secret", func() bool { return strings.Contains(strings.ToLower(logged.String()), "auth") })
	if strings.Contains(logged.String(), "right") || strings.Contains(logged.String(), "wrong") {
		t.Error("the log contains the secret")
	}
}

func TestEmbeddedTLS(t *testing.T) {
	t.Parallel() // the test mostly waits
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	config := natsbroker.Config{Listen: "127.0.0.1:0", TLS: &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		RootCAs:      pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}}
	a, got := newEmbedded(t, config)
	config.Routes = []string{a.ClusterAddr()}
	b, _ := newEmbedded(t, config)
	got.reach(t, b)
	publish(t, b, "1")
	eventually(t, "message", func() bool { return got.has("1") })
}
