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

// routeTimeout is how long Embedded waits for the first of the others.
const routeTimeout = 2 * time.Second

// maxPayload is the most that NATS recommends.
const maxPayload = 8 << 20

// Config is what [Embedded] needs to know. The zero Config is that of a process
// alone.
type Config struct {
	// Listen is the host:port at which the servers of other processes reach
	// this one's, and nobody else has business: 6222 is the usual port, 0 any
	// that is free, and without a host it is every address of the machine.
	// Empty means that no port is opened.
	Listen string

	// Routes are addresses at which others listen. One that is up suffices, as
	// servers tell each other of the rest; the list may be the same on all
	// machines, with their own address in it. As each server has to reach each,
	// it takes a Listen.
	Routes []string

	// Secret is a text that all servers share, and without which none gets in.
	// Who gets in receives every event and may send any. It is required
	// unless Listen is a loopback address or TLS is set. Routes without TLS
	// carry it, as all else, in the clear.
	Secret string

	// TLS protects routes. Each server has both roles, so it needs
	// Certificates with the names in the others' Routes, RootCAs, and to know
	// servers by their certificate ClientCAs and ClientAuth. Nil means no TLS.
	TLS *tls.Config

	// StoreDir is a directory of this server's own where JetStream keeps what
	// [Broker.WithHistory] is for; it is made if need be, and has to be the same
	// after a restart. Where there is a Listen it takes three nodes or more, of
	// which more than half have to be up, and Routes that list all of them, on
	// each the same. Empty means no JetStream.
	StoreDir string

	// Logger gets warnings and errors of the server, as of routes that can't
	// be made. Nil means slog.Default().
	Logger *slog.Logger
}

// Embedded starts a NATS server inside this process and returns a broker on it,
// whose Close, which is the hub's to call, shuts it down. Several make a
// cluster by their Routes. It is no server for other clients: there is a port
// on 127.0.0.1, as it can't be without, but nobody is let in.
//
// It returns when the server has found another one of its cluster, after two
// seconds at the latest: it may be the first. Those that come later find it. An
// error tells what is wrong with config, or that Listen can't be had.
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
	b.server = s
	if len(options.Routes) >= 3 {
		b.replicas = 3
	}
	return b, nil
}

// connect returns a connection within the process to a server that is ready.
func connect(s *server.Server, options *server.Options) (*nats.Conn, error) {
	if !s.ReadyForConnections(10 * time.Second) {
		return nil, errors.New("it doesn't get ready")
	}
	for deadline := time.Now().Add(routeTimeout); len(options.Routes) > 0 && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if s.NumRemotes() > 0 {
			time.Sleep(spread) // for the rest, and what each of them has subscribed to
			break
		}
	}
	return nats.Connect("", append(Options(),
		nats.InProcessServer(s),
		nats.RetryOnFailedConnect(false),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), // a slow consumer: the hub is told
	)...)
}

// ClusterAddr returns where an embedded server listens for others, as host:port
// for their Routes; of any other it is empty.
func (b *Broker) ClusterAddr() string {
	if b.server == nil || b.server.ClusterAddr() == nil {
		return ""
	}
	return b.server.ClusterAddr().String()
}

// options returns the server's.
func (c *Config) options() (*server.Options, error) {
	// With DontListen a server (2.15.2) never begins with its routes, and its
	// Shutdown hangs. So it listens where only this machine can reach it, and
	// turns everybody away.
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
			return nil, fmt.Errorf("natsbroker: Config has a StoreDir, a Listen and %d Routes: a history needs three nodes or more, and Routes that list all of them, this one included", len(c.Routes))
		}
		o.ServerName, o.JetStream, o.StoreDir = name, true, c.StoreDir
		o.NoSystemAccount = false // in which servers agree
	}
	if c.Listen == "" {
		if len(c.Routes) > 0 {
			return nil, errors.New("natsbroker: Config has Routes, but no Listen: servers pass on nothing, so each has to be reached by each")
		}
		return o, nil
	}
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return nil, fmt.Errorf("natsbroker: Config.Listen: %w", err)
	}
	if ip := net.ParseIP(host); c.Secret == "" && c.TLS == nil && host != "localhost" && !ip.IsLoopback() {
		return nil, fmt.Errorf("natsbroker: Config.Listen is %s, where others than this machine may reach it: set Secret or TLS", c.Listen)
	}

	// The server only logs that it can't listen, so this tries before.
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return nil, fmt.Errorf("natsbroker: Config.Listen: %w", err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()

	o.Cluster = server.ClusterOpts{
		Name:          "realtime",
		Host:          cmp.Or(host, "0.0.0.0"),
		Port:          port,
		TLSConfig:     c.TLS,
		NoAdvertise:   true, // of where clients would be let in
		PoolSize:      -1,   // they divide accounts, and there is one
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

// storedName returns the name of the server that has a directory, which the
// others of its cluster know it by, also after a restart.
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

// thisProcess lets in who comes without a network.
type thisProcess struct{}

func (thisProcess) Check(c server.ClientAuthentication) bool {
	addr := c.RemoteAddress()
	return addr != nil && addr.Network() == "pipe"
}

// A serverLog gives a Logger what the server's operator should know.
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
