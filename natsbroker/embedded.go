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
	"strings"
	"sync"
	"sync/atomic"
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

	// Sync is how often the files in StoreDir are flushed to the disk. Records
	// that are not flushed are lost if the machine loses power, but not if the
	// process ends. Negative means before each record is acknowledged. Zero
	// means the same for a node alone, and two minutes where there is a Listen:
	// the other nodes have what one machine loses. Set it to a negative value
	// there if all machines may lose power at the same time.
	Sync time.Duration

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
// start later find it. The name is as with [New]: hubs of one cluster need names of
// their own as well. An error tells that the name is not valid, names the field of
// config that is wrong, or says that the server can't listen.
func Embedded(name string, config Config) (*Broker, error) {
	if _, err := subjectPrefix(name); err != nil {
		return nil, fmt.Errorf("natsbroker: embedded server: %w", err)
	}
	options, err := config.options()
	if err != nil {
		return nil, err
	}
	h := &host{options: options, log: cmp.Or(config.Logger, slog.Default())}
	if err := h.start(startTimeout); err != nil {
		return nil, fmt.Errorf("natsbroker: embedded server: %w", err)
	}
	conn, err := h.connect()
	if err != nil {
		h.shutdown()
		return nil, fmt.Errorf("natsbroker: embedded server: %w", err)
	}
	b := New(name, conn)
	b.host, b.Logger = h, config.Logger
	if len(options.Routes) >= 3 {
		b.replicas = 3
	}
	return b, nil
}

// A host has the NATS server of this process. It can start it again: a server
// whose disk was full accepts no record until then, also when there is room again.
// Its own connection follows, as after any restart of a server.
type host struct {
	options *server.Options // never changed once the first server runs
	log     *slog.Logger
	server  atomic.Pointer[server.Server]
	stuck   atomic.Bool // a store of the server has had an error

	mu      sync.Mutex // guards the field below, and is held while a server is started
	stopped bool
}

const (
	startTimeout   = 10 * time.Second
	restartTimeout = 3 * time.Second
)

// start starts a server. The caller holds mu, or nobody else has the host yet.
func (h *host) start(timeout time.Duration) error {
	s, err := server.NewServer(h.options.Clone())
	if err != nil {
		return err
	}
	h.stuck.Store(false)
	s.SetLoggerV2(serverLog{h.log, &h.stuck}, false, false, false)
	s.Start()
	if !s.ReadyForConnections(timeout) {
		s.Shutdown()
		s.WaitForShutdown()
		return fmt.Errorf("it is not ready after %v: its log says why", timeout)
	}
	h.server.Store(s)
	if c := s.JetStreamConfig(); c != nil && h.options.JetStreamMaxStore == 0 {
		h.options.JetStreamMaxStore = c.MaxStore // a restart would find less, where the disk is full
	}
	if a, is := s.ClusterAddr(), h.options.Cluster.Port != 0; is && a != nil {
		h.options.Cluster.Port = a.Port // where the others find it after a restart
	}
	return nil
}

// restart starts another server in the place of the one that runs.
func (h *host) restart() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return ErrClosed
	}
	h.running().Shutdown()
	h.running().WaitForShutdown()
	return h.start(restartTimeout)
}

func (h *host) shutdown() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stopped = true
	h.running().Shutdown()
	h.running().WaitForShutdown()
}

// running returns the server. While another is started in its place, and where that
// has failed, it is shut down.
func (h *host) running() *server.Server { return h.server.Load() }

// InProcessConn makes a connection to the server that runs. The connection's
// reconnects call it.
func (h *host) InProcessConn() (net.Conn, error) { return h.running().InProcessConn() }

// connect returns a connection within the process.
func (h *host) connect() (*nats.Conn, error) {
	for deadline := time.Now().Add(routeTimeout); len(h.options.Routes) > 0 && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if h.running().NumRemotes() > 0 {
			time.Sleep(spread) // for the other routes, and the subscriptions of each server
			break
		}
	}
	return nats.Connect("", append(Options(),
		nats.InProcessServer(h),
		nats.RetryOnFailedConnect(false),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), // a slow consumer, of which the hub is told
	)...)
}

const (
	reviveWait   = 3 * time.Second // between two restarts of a server
	restartNeeds = 1 << 20         // bytes of room
)

var errStuck = errors.New("JetStream could not write to its disk, and the embedded server is started again")

// revive starts an embedded server again whose JetStream could not write, once it
// can. It is also called where the last try has left no server. Until then a node
// alone has no history. One among others goes on, as they may have it. The goroutine
// read alone calls it.
func (b *HistoryBroker) revive() error {
	switch {
	case !b.host.isIll():
		return nil
	case time.Since(b.revived) < reviveWait || b.host.tryDisk() != nil:
		if len(b.host.options.Routes) > 0 {
			return nil
		}
		return errStuck
	}
	err := b.host.restart()
	b.revived = time.Now()
	if err != nil {
		return fmt.Errorf("the embedded server doesn't start again: %w", err)
	}
	return errStuck // and the connection has to be made again
}

// isIll reports whether the server accepts no records until it is started again.
// The other servers of its cluster may still do.
func (h *host) isIll() bool {
	return h != nil && h.options.JetStream && (h.stuck.Load() || !h.running().JetStreamEnabled())
}

// because returns what the user has to do about an ill server, or err.
func (h *host) because(err error) error {
	if err != nil && h.isIll() {
		if full := h.tryDisk(); full != nil {
			return fmt.Errorf("JetStream can't write to its disk: make room in StoreDir, and the embedded server is started again: %w", full)
		}
	}
	return err
}

// tryDisk returns an error unless the store has room for a restart: without it the
// server would not start, and would leave empty files behind.
func (h *host) tryDisk() error {
	f, err := os.CreateTemp(h.options.StoreDir, "room")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(make([]byte, restartNeeds))
	return cmp.Or(err, f.Close())
}

// ClusterAddr returns the host:port at which an embedded server accepts other
// servers, for their Routes. It is empty where the server accepts none, or isn't
// embedded.
func (b *Broker) ClusterAddr() string {
	if b.host == nil {
		return ""
	}
	addr := b.host.running().ClusterAddr()
	if addr == nil {
		return ""
	}
	return addr.String()
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
		o.NoSystemAccount = false       // which the servers need to agree
		o.SyncInterval = max(c.Sync, 0) // zero is the server's default
		o.SyncAlways = c.Sync < 0 || c.Sync == 0 && c.Listen == ""
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

// A serverLog gives a Logger the server's warnings and errors. It notes an error
// after which a store accepts nothing until the server is started again: clients
// are told nothing of that, they just get no answer.
type serverLog struct {
	*slog.Logger
	stuck *atomic.Bool
}

func (serverLog) Noticef(string, ...any) {}
func (serverLog) Debugf(string, ...any)  {}
func (serverLog) Tracef(string, ...any)  {}

func (l serverLog) Warnf(format string, v ...any) {
	l.Warn("natsbroker: embedded server: " + fmt.Sprintf(format, v...))
}

func (l serverLog) Errorf(format string, v ...any) {
	if strings.Contains(strings.ToLower(format), "critical write error") {
		l.stuck.Store(true) // of the disk, or of what a full disk has left behind
	}
	l.Error("natsbroker: embedded server: " + fmt.Sprintf(format, v...))
}

func (l serverLog) Fatalf(format string, v ...any) { l.Errorf(format, v...) }
