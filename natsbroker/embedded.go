package natsbroker

import (
	"cmp"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// routeTimeout is how long Embedded waits for a first route to another server.
const routeTimeout = 2 * time.Second

// maxPayload is the highest max_payload that NATS recommends.
const maxPayload = 8 << 20

// Config is the configuration of [Embedded]. The zero Config is for a single
// process.
type Config struct {
	// Listen is the host:port at which the server accepts the servers of the
	// other processes, and nobody else. The usual port is 6222; port 0 is any
	// free one. Without a host it is every address of the machine. Empty means
	// that other processes can't reach the server.
	Listen string

	// Routes are the addresses at which the other servers listen. One of them
	// that is up is enough, because servers tell each other of the rest. The
	// list may be the same on all machines, with their own addresses in it.
	// Routes need a Listen, because each server has to reach each other one.
	Routes []string

	// Secret is a text that all servers share. A server without it is refused;
	// a server with it receives every event and may send any. Secret is
	// required unless Listen is a loopback address or TLS is set. Routes
	// without TLS carry it, as everything else, in the clear.
	Secret string

	// TLS protects the routes. A server is the client of some routes and the
	// server of others. So TLS needs Certificates, with the host names of the
	// others' Routes in them, and RootCAs. With ClientCAs and ClientAuth only
	// servers that have a certificate are accepted. Nil means no TLS.
	TLS *tls.Config

	// StoreDir is the directory in which JetStream keeps the history of
	// [Broker.WithHistory]. It belongs to this server alone, is made if it
	// isn't there, and has to be the same after a restart. With a Listen a
	// history needs three nodes or more, and on each of them Routes that list
	// all of them. More than half of the nodes have to be up. Empty means no
	// JetStream.
	StoreDir string

	// Logger gets the warnings and errors of the server, for example about
	// routes that can't be made. Nil means slog.Default().
	Logger *slog.Logger
}

// Embedded starts a NATS server inside this process and returns a broker on it.
// The broker's Close, which the hub calls, shuts the server down. Several servers
// form a cluster by their Routes. The server isn't for other clients: it has to
// have a port for them, on 127.0.0.1, but it refuses all of them.
//
// Embedded returns when the server has found another server of its cluster, and
// after two seconds at the latest, because it may be the first. Servers that
// start later find it. An error names the field of config that is wrong, or says
// that the server can't listen.
func Embedded(config Config) (*Broker, error) {
	options, err := config.options()
	if err != nil {
		return nil, err
	}
	s, err := server.NewServer(options)
	if err != nil {
		return nil, fmt.Errorf("natsbroker: embedded server: %w", err)
	}
	s.SetLoggerV2(serverLog{cmp.Or(config.Logger, slog.Default())}, false, false, false)
	s.Start()
	conn, err := connect(s, options)
	if err != nil {
		s.Shutdown()
		s.WaitForShutdown()
		return nil, fmt.Errorf("natsbroker: embedded server: %w", err)
	}
	b := New(conn)
	b.server, b.Logger = s, config.Logger
	if len(options.Routes) >= 3 {
		b.replicas = 3
	}
	return b, nil
}

// connect returns a connection within the process to a server that is ready.
func connect(s *server.Server, options *server.Options) (*nats.Conn, error) {
	if !s.ReadyForConnections(10 * time.Second) {
		return nil, errors.New("it is not ready after 10 s: its log says why")
	}
	for deadline := time.Now().Add(routeTimeout); len(options.Routes) > 0 && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if s.NumRemotes() > 0 {
			time.Sleep(spread) // for the other routes, and the subscriptions of each server
			break
		}
	}
	return nats.Connect("", append(Options(),
		nats.InProcessServer(s),
		nats.RetryOnFailedConnect(false),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), // a slow consumer, of which the hub is told
	)...)
}

// ClusterAddr returns the host:port at which an embedded server accepts other
// servers, for their Routes. It is empty where the server accepts none, or isn't
// embedded.
func (b *Broker) ClusterAddr() string {
	if b.server == nil || b.server.ClusterAddr() == nil {
		return ""
	}
	return b.server.ClusterAddr().String()
}

// options returns the options of the server.
func (c *Config) options() (*server.Options, error) {
	// A server with DontListen (2.15.2) never connects its routes, and its
	// Shutdown hangs. So this one listens where only this machine can reach it,
	// and refuses every client.
	o := &server.Options{
		ServerName:                 rand.Text(),
		Host:                       "127.0.0.1",
		Port:                       server.RANDOM_PORT,
		CustomClientAuthentication: thisProcess{},
		NoSigs:                     true,
		NoSystemAccount:            true,
		MaxPayload:                 maxPayload,
	}
	if c.StoreDir != "" {
		name, err := storedName(c.StoreDir)
		if err != nil {
			return nil, err
		}
		if c.Listen != "" && len(c.Routes) < 3 {
			return nil, fmt.Errorf("natsbroker: Config has a StoreDir, a Listen and %d Routes: list three nodes or more in Routes, this one included", len(c.Routes))
		}
		o.ServerName, o.JetStream, o.StoreDir = name, true, c.StoreDir
		o.NoSystemAccount = false // which the servers need to agree
	}
	if c.Listen == "" {
		if len(c.Routes) > 0 {
			return nil, errors.New("natsbroker: Config has Routes, but no Listen: set Listen, because each server has to reach each other one")
		}
		return o, nil
	}
	host, text, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return nil, fmt.Errorf("natsbroker: Config.Listen: %w", err)
	}
	if ip := net.ParseIP(host); c.Secret == "" && c.TLS == nil && host != "localhost" && !ip.IsLoopback() {
		return nil, fmt.Errorf("natsbroker: Config.Listen is %s, which other machines may reach: set Secret or TLS", c.Listen)
	}

	// A server that can't listen only logs it. So this tries first.
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return nil, fmt.Errorf("natsbroker: Config.Listen: %w", err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	if text == "0" {
		port = server.RANDOM_PORT // another program may have that one by now
	}

	o.Cluster = server.ClusterOpts{
		Name:          "realtime",
		Host:          cmp.Or(host, "0.0.0.0"),
		Port:          port,
		TLSConfig:     c.TLS,
		NoAdvertise:   true, // the address for clients, as none is accepted
		PoolSize:      -1,   // no pool of routes: it divides accounts, and there is one
		PingInterval:  pingInterval,
		MaxPingsOut:   maxPings,
		WriteDeadline: writeTimeout,
	}
	if c.Secret != "" {
		o.Cluster.Username, o.Cluster.Password = "realtime", c.Secret
	}
	for _, route := range c.Routes {
		if _, _, err := net.SplitHostPort(route); err != nil {
			return nil, fmt.Errorf("natsbroker: Config.Routes: %w", err)
		}
		u := &url.URL{Scheme: "nats-route", Host: route}
		if c.Secret != "" {
			u.User = url.UserPassword("realtime", c.Secret)
		}
		o.Routes = append(o.Routes, u)
	}
	return o, nil
}

// storedName returns the name of the server that has a directory. The other
// servers of its cluster know it by that name, also after a restart.
func storedName(dir string) (string, error) {
	file := filepath.Join(dir, "name")
	name, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		name = []byte(rand.Text())
		if err = os.MkdirAll(dir, 0o700); err == nil {
			err = os.WriteFile(file, name, 0o600)
		}
	}
	if err != nil {
		return "", fmt.Errorf("natsbroker: Config.StoreDir: %w", err)
	}
	return string(name), nil
}

// thisProcess accepts clients that connect without a network.
type thisProcess struct{}

func (thisProcess) Check(c server.ClientAuthentication) bool {
	addr := c.RemoteAddress()
	return addr != nil && addr.Network() == "pipe"
}

// A serverLog gives a Logger the server's warnings and errors.
type serverLog struct{ *slog.Logger }

func (serverLog) Noticef(string, ...any) {}
func (serverLog) Debugf(string, ...any)  {}
func (serverLog) Tracef(string, ...any)  {}

func (l serverLog) Warnf(format string, v ...any) {
	l.Warn("natsbroker: embedded server: " + fmt.Sprintf(format, v...))
}

func (l serverLog) Errorf(format string, v ...any) {
	l.Error("natsbroker: embedded server: " + fmt.Sprintf(format, v...))
}

func (l serverLog) Fatalf(format string, v ...any) { l.Errorf(format, v...) }
