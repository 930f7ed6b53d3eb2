package natsbroker_test

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/natsbroker"
)

// smallDisk returns the directory of a file system of 64 MB. Only root may have
// one.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Skipf("a small file system can't be mounted: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// fill writes a file until the disk is full, and returns its name.
func fill(t *testing.T, dir string) string {
	t.Helper()
	f, err := os.Create(dir + "/ballast")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; size /= 2 {
		for b := make([]byte, size); err == nil; {
			_, err = f.Write(b)
		}
		err = nil
	}
	return f.Name()
}

// The disk of an embedded server is full for a while. Where it is alone Publish
// fails then. When there is room again the history works again, on all nodes.
func TestDiskIsFull(t *testing.T) {
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprint("nodes=", n), func(t *testing.T) {
			t.Parallel() // the test mostly waits
			configs := make([]natsbroker.Config, n)
			for i := range configs {
				configs[i] = natsbroker.Config{StoreDir: smallDisk(t), Logger: slog.New(slog.DiscardHandler)}
				if n > 1 {
					configs[i].Listen = fmt.Sprintf("127.0.0.1:%d", freePort(t))
				}
			}
			if n > 1 {
				for i := range configs {
					for _, c := range configs {
						configs[i].Routes = append(configs[i].Routes, c.Listen)
					}
				}
			}
			var nodes []*site
			for _, c := range configs {
				b, err := natsbroker.Embedded(c)
				if err != nil {
					t.Fatal(err)
				}
				nodes = append(nodes, newSite(t, b.WithHistory()))
			}
			for _, s := range nodes {
				s.expectAny(t, "before", nodes[0])
			}
			ballast := fill(t, configs[0].StoreDir)
			event := realtime.Event{Data: []byte(strings.Repeat("x", 10_000))}
			for until := time.Now().Add(3 * time.Second); time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
				nodes[0].Publish(t.Context(), "x", event)
			}
			if n == 1 {
				eventually(t, "full disk", func() bool { return nodes[0].Stats().BrokerDown })
			}
			os.Remove(ballast)
			began := time.Now()
			for i, s := range nodes {
				s.expectAny(t, fmt.Sprint("event of ", i), s)
				s.expectAny(t, fmt.Sprint("event of ", i, " elsewhere"), nodes[(i+1)%n])
				eventually(t, "working hub", func() bool { return !s.Stats().BrokerDown })
			}
			t.Logf("all was well %v after there was room", time.Since(began))
		})
	}
}
