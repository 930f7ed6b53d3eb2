package brokertest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// nodeVariable is set in the environment of a process that is a node. Its value
// is the node's configuration. ageVariable has the Age of its history.
const (
	nodeVariable = "BROKERTEST_NODE"
	ageVariable  = "BROKERTEST_AGE"
)

// Main is to be called first by the TestMain of a package that calls
// [RunNodes]. In a process that RunNodes has started it runs a node and doesn't
// return; broker makes the node's broker from its [Cluster.Config]. In other
// processes it does nothing.
func Main(broker func(config string) (realtime.Broker, error)) {
	config, is := os.LookupEnv(nodeVariable)
	if !is {
		return
	}
	fmt.Fprintln(os.Stderr, "brokertest: node:", serveNode(config, broker))
	os.Exit(1)
}

// serveNode runs a node: a hub, with paths by which the test publishes and asks
// for figures. The process ends with its standard input, which the test holds
// open.
func serveNode(config string, broker func(config string) (realtime.Broker, error)) error {
	b, err := broker(config)
	if err != nil {
		return err
	}
	hub := realtime.NewHub()
	hub.Broker = b
	age, err := time.ParseDuration(os.Getenv(ageVariable))
	if err != nil {
		return err
	}
	hub.History = realtime.History{Events: 100_000, Age: age}
	hub.SendBuffer = 10_000
	hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
		q := r.URL.Query()
		if late := q["late"]; len(late) > 0 {
			time.AfterFunc(lateBy, func() { c.Subscribe(late...) }) // as when its page asks for it
		}
		if err := c.Subscribe(q["topic"]...); err != nil && !errors.Is(err, realtime.ErrBrokerUnavailable) { // which is temporary
			return err
		}
		if member := q.Get("member"); member != "" {
			return c.Appear(membersTopic, member, nil)
		}
		return nil
	}
	hub.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	mux := http.NewServeMux()
	mux.Handle("GET /live", hub)
	mux.HandleFunc("POST /publish", func(w http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(r.Body)
		if err == nil {
			q := r.URL.Query()
			err = hub.Publish(r.Context(), q.Get("topic"), realtime.Event{Data: data, Key: q.Get("key"), Gone: q.Has("gone")})
		}
		answer(w, err)
	})
	mux.HandleFunc("POST /disconnect", func(w http.ResponseWriter, r *http.Request) {
		answer(w, hub.Disconnect(r.Context(), r.URL.Query().Get("topic"), 4001, ""))
	})
	mux.HandleFunc("GET /figures", func(w http.ResponseWriter, _ *http.Request) {
		f := figures{Stats: hub.Stats(), Cluster: hub.Stats().ClusterClients}
		for e := range hub.Latest(valuesTopic) {
			f.Values = append(f.Values, e.Key+"="+string(e.Data))
		}
		for m := range hub.Members(membersTopic) {
			f.Members = append(f.Members, m.Key)
		}
		slices.Sort(f.Values) // nodes without a history have orders of their own
		slices.Sort(f.Members)
		json.NewEncoder(w).Encode(f)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("http://%s\n", listener.Addr())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	return http.Serve(listener, mux)
}

// answer answers a request to publish or to disconnect.
func answer(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, realtime.ErrBrokerUnavailable):
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// figures are the answer of a node to the test.
type figures struct {
	Stats   realtime.Stats
	Cluster int // clients of all nodes, as this one knows them
	Values  []string
	Members []string
}

// A process is a process that runs a node.
type process struct {
	cmd *exec.Cmd
	in  io.Closer // its standard input
	url string
	log *strings.Builder

	members []string       // that its clients show
	shown   sync.WaitGroup // the clients that show members
}

// startNode starts a process and waits until it listens.
func startNode(t *testing.T, config string, age time.Duration) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(self), log: new(strings.Builder)}
	p.cmd.Env = append(os.Environ(), nodeVariable+"="+config, ageVariable+"="+age.String())
	p.cmd.Stderr = p.log
	p.in, err = p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		p.kill()
		t.Fatalf("a node doesn't start: %v\n%s", err, p.log)
	}
	p.url = strings.TrimSpace(line)
	return p
}

// kill ends the process as a crash would.
func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
	p.in.Close()
	p.shown.Wait()
}

// show makes a client that is a member of the node until the process ends. It has
// the topics of the members and of the values, as a node without a history knows
// those of its clients alone.
func (p *process) show(member string) {
	p.members = append(p.members, member)
	p.shown.Go(func() {
		for {
			req, err := http.NewRequest("GET", p.url+"/live?topic="+membersTopic+"&topic="+valuesTopic+"&member="+url.QueryEscape(member), nil)
			if err != nil {
				return
			}
			req.Header.Set("Accept", "text/event-stream")
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				return
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	})
}

// publish has the node publish an event, and returns the status of its answer, or
// zero if there is none.
func (p *process) publish(topic, data string) (status int) {
	return p.post("/publish?topic="+topic, data)
}

// set has the node publish a value, or take one away. It returns what publish does.
func (p *process) set(key, data string, gone bool) (status int) {
	path := "/publish?topic=" + valuesTopic + "&key=" + url.QueryEscape(key)
	if gone {
		path += "&gone"
	}
	return p.post(path, data)
}

// disconnect has the node disconnect the clients of a topic. It returns what
// publish does.
func (p *process) disconnect(topic string) (status int) {
	return p.post("/disconnect?topic="+topic, "")
}

func (p *process) post(path, body string) (status int) {
	resp, err := http.Post(p.url+path, "text/plain", strings.NewReader(body))
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// figures asks the node for its figures.
func (p *process) figures() (f figures, err error) {
	client := http.Client{Timeout: patience}
	resp, err := client.Get(p.url + "/figures")
	if err != nil {
		return f, err
	}
	defer resp.Body.Close()
	return f, json.NewDecoder(resp.Body).Decode(&f)
}
