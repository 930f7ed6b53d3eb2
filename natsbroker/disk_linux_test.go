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
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
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

// ballast returns the name of the file that fill writes.
func ballast(dir string) string { return dir + "/ballast" }

// fill writes a file until the disk is full.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(ballast(dir))
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
}

// The disk of an embedded server is full for a while. Publish fails then. When
// there is room again the history works again.
func TestDiskIsFull(t *testing.T) {
	t.Parallel() // the test mostly waits
	dir := smallDisk(t)
	b, err := natsbroker.Embedded("realtime", natsbroker.Config{StoreDir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, b.WithHistory())
	s.expectAny(t, "before", s)
	fill(t, dir)
	event := realtime.Event{Data: []byte(strings.Repeat("x", 10_000))}
	for until := time.Now().Add(3 * time.Second); time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
		s.Publish(t.Context(), "x", event)
	}
	eventually(t, "full disk", func() bool { return s.Stats().BrokerDown })
	os.Remove(ballast(dir))
	began := time.Now()
	s.expectAny(t, "event", s)
	eventually(t, "working hub", func() bool { return !s.Stats().BrokerDown })
	t.Logf("all was well %v after there was room", time.Since(began))
}

// Three nodes have small disks, with an embedded server each or one server for all.
// One disk is full for a while, then each. An embedded server is started again by its
// broker when there is room, and another one by its user.
func TestNodesOnSmallDisks(t *testing.T) {
	t.Parallel()
	full := func(name string, end func() error, dirs ...string) brokertest.Fault {
		return brokertest.Fault{Name: name, For: 4 * time.Second,
			Begin: func() error {
				for _, dir := range dirs {
					fill(t, dir)
				}
				return nil
			},
			End: func() error {
				for _, dir := range dirs {
					os.Remove(ballast(dir))
				}
				return end()
			},
		}
	}
	t.Run("embedded", func(t *testing.T) {
		t.Parallel() // the test mostly waits
		cluster := brokertest.Cluster{Steady: true}
		var dirs, routes []string
		for range cluster.Config {
			dirs = append(dirs, smallDisk(t))
			routes = append(routes, fmt.Sprintf("127.0.0.1:%d", freePort(t)))
		}
		for i := range cluster.Config {
			cluster.Config[i] = nodeConfig{History: true, Listen: routes[i], Routes: routes, StoreDir: dirs[i]}.String()
		}
		none := func() error { return nil }
		cluster.Faults = []brokertest.Fault{full("a full disk", none, dirs[0]), full("three full disks", none, dirs...)}
		brokertest.RunNodes(t, true, cluster)
	})
	t.Run("server", func(t *testing.T) {
		t.Parallel() // the test mostly waits
		dir := smallDisk(t)
		s := newServerProcess(t, serverConfig{Port: freePort(t), Dir: dir})
		restart := func() error {
			s.kill()
			return s.start()
		}
		cluster := brokertest.Cluster{Steady: true, Faults: []brokertest.Fault{full("a full disk", restart, dir)}}
		for i := range cluster.Config {
			cluster.Config[i] = nodeConfig{History: true, URL: s.url()}.String()
		}
		brokertest.RunNodes(t, true, cluster)
	})
}
