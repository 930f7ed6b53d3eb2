// Feed streams an answer word by word, as a page of a language model does. One
// HTTP handler writes the event stream. A page that was cut gets the words that
// it lacks, each once and in order, and so does one that is reloaded. A Stop
// button ends the answer for all pages that watch it.
//
// The words are made up by chance: this is a toy, and needs no network. Start it
// and open the address that it prints:
//
//	go run ./examples/feed
package main

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/examples/internal/look"
)

func main() {
	addr := flag.String("addr", "localhost:8080", "`host:port` to listen on")
	pause := flag.Duration("pause", 80*time.Millisecond, "time between two words")
	flag.Parse()
	if err := run(*addr, *pause); err != nil {
		fmt.Fprintln(os.Stderr, "feed:", err)
		os.Exit(1)
	}
}

// run serves the feed until the process is told to stop.
func run(addr string, pause time.Duration) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("%w (-addr chooses another address)", err)
	}
	desk := newDesk(ctx, pause)
	server := &http.Server{
		Handler: newHandler(desk),
		// Every stream ends with ctx. Shutdown alone would wait for them for
		// ever: it doesn't end requests.
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      5 * time.Second, // for the page: NewStream lifts it for a stream
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	host, _, _ := net.SplitHostPort(addr)
	_, port, _ := net.SplitHostPort(listener.Addr().String()) // the real one, also for -addr localhost:0
	fmt.Println("Feed is at http://" + net.JoinHostPort(cmp.Or(host, "localhost"), port))

	select {
	case err := <-served:
		return err
	case <-ctx.Done():
		stop() // a second Ctrl-C ends the program at once
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err = server.Shutdown(ctx)
	desk.writing.Wait() // it has ended with the first ctx
	return err
}

//go:embed index.html
var page string

func newHandler(desk *desk) http.Handler {
	mux := http.NewServeMux()
	look.Handle(mux, page)
	mux.HandleFunc("POST /answers", desk.serveAsk)
	mux.HandleFunc("GET /answers/{id}", desk.withAnswer(serveAnswer))
	mux.HandleFunc("POST /answers/{id}/stop", desk.withAnswer(serveStop))
	mux.HandleFunc("GET /events/feed/{id}", desk.withAnswer(feed))
	return http.NewCrossOriginProtection().Handler(mux) // refuses POSTs of other sites' pages
}

// feed streams an answer. The id of its events is the number of words so far, so
// the last id that a page saw says where it continues.
func feed(w http.ResponseWriter, r *http.Request, a *answer) {
	lastID := realtime.LastEventID(r)
	if lastID == "end" { // the page has all
		w.WriteHeader(http.StatusNoContent)
		return
	}
	seen, _ := strconv.Atoi(lastID)

	stream := realtime.NewStream(w, r)
	if stream == nil {
		return // NewStream has answered the request
	}
	defer stream.Close()
	a.watch(+1)
	defer a.watch(-1)
	stream.SetRetry(500 * time.Millisecond)

	// A tick also keeps proxies from ending a stream whose words are slow.
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()

	for {
		text, words, end, changed := a.after(seen)
		if text != "" {
			// Not one event for each word: a reader that is slow, or comes
			// late, gets all that there are.
			e, _ := realtime.JSON("words", text) // always encodes
			e.ID = strconv.Itoa(words)
			stream.SendEvent(e)
			seen = words
		}
		if end != "" {
			e, _ := realtime.JSON("end", end)
			e.ID = "end"
			stream.SendEvent(e)
			return
		}

		select {
		case <-changed:
		case t := <-ticker.C:
			// It has no id, so the page's last id stays.
			stream.Send("tick", map[string]any{
				"time":  t.Format(time.RFC3339),
				"count": a.watch(0),
			})
		case <-stream.Done(): // the client disconnected, or the program ends
			return
		}
	}
}

// withAnswer returns a handler that calls serve with the answer of the URL's id.
// The id is random. A page that has it may watch the answer and stop it.
func (d *desk) withAnswer(serve func(w http.ResponseWriter, r *http.Request, a *answer)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a := d.find(r.PathValue("id"))
		if a == nil {
			http.Error(w, "there is no such answer, or it is too old", http.StatusNotFound)
			return
		}
		serve(w, r, a)
	}
}

// serveAsk starts an answer and sends its id.
func (d *desk) serveAsk(w http.ResponseWriter, r *http.Request) {
	var asked struct {
		Prompt string `json:"prompt"`
	}
	// Server.ReadTimeout would end streams as well.
	http.NewResponseController(w).SetReadDeadline(time.Now().Add(5 * time.Second))
	body := http.MaxBytesReader(w, r.Body, 12*maxPromptRunes+100) // enough, however they are escaped
	if err := json.NewDecoder(body).Decode(&asked); err != nil {
		http.Error(w, "a prompt comes as JSON", http.StatusBadRequest)
		return
	}
	a, err := d.ask(asked.Prompt)
	switch {
	case errors.Is(err, errBusy):
		w.Header().Set("Retry-After", "10")
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
	default:
		w.Header().Set("Location", "/answers/"+a.id)
		sendAnswer(w, http.StatusCreated, a)
	}
}

func serveAnswer(w http.ResponseWriter, _ *http.Request, a *answer) {
	sendAnswer(w, http.StatusOK, a)
}

// sendAnswer sends what there is beside the words.
func sendAnswer(w http.ResponseWriter, status int, a *answer) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"id": a.id, "prompt": a.prompt})
}

func serveStop(w http.ResponseWriter, _ *http.Request, a *answer) {
	a.stop(errStopped)
	w.WriteHeader(http.StatusNoContent)
}
