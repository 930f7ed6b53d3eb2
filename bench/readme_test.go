package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// What the README's pieces of Go use without declaring it.
const readmePreamble = `package main

import (
	"context"
	"net/http"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/redis/rueidis"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/natsbroker"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/redisbroker"
)

var (
	ctx       context.Context
	w         http.ResponseWriter
	r         *http.Request
	mux       *http.ServeMux
	hub       *realtime.Hub
	text, now []byte
	score     struct{}
	mayWatch  func(r *http.Request, match string) bool
	options   rueidis.ClientOption
	conn      *nats.Conn
	config    natsbroker.Config
	err       error
)

func main() {}
`

// All Go in the README compiles: its program, and its pieces as bodies of
// functions. The test is here because this module requires both brokers.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllSubmatch(readme, -1)
	if len(blocks) < 2 {
		t.Fatalf("the README has %d blocks of Go", len(blocks))
	}
	pieces := []byte(readmePreamble)
	for i, b := range blocks[1:] {
		pieces = fmt.Appendf(pieces, "\nfunc piece%d() {\n%s}\n", i, b[1])
	}
	for name, source := range map[string][]byte{"program.go": blocks[0][1], "pieces.go": pieces} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, source, 0o666); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", os.DevNull, path).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s\n%s", err, out, source)
		}
	}
}
