package natsbroker_test

import (
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

// The disk of an embedded server is full for a while. Publish fails then. When
// there is room again the history works again.
func TestDiskIsFull(t *testing.T) {
	t.Parallel() // the test mostly waits
	dir := smallDisk(t)
	b, err := natsbroker.Embedded(natsbroker.Config{StoreDir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, b.WithHistory())
	s.expectAny(t, "before", s)
	ballast := fill(t, dir)
	event := realtime.Event{Data: []byte(strings.Repeat("x", 10_000))}
	for until := time.Now().Add(3 * time.Second); time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
		s.Publish(t.Context(), "x", event)
	}
	eventually(t, "full disk", func() bool { return s.Stats().BrokerDown })
	os.Remove(ballast)
	began := time.Now()
	s.expectAny(t, "event", s)
	eventually(t, "working hub", func() bool { return !s.Stats().BrokerDown })
	t.Logf("all was well %v after there was room", time.Since(began))
}
