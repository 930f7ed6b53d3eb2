package brokertest_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
)

func TestMemory(t *testing.T) {
	t.Parallel()
	brokertest.Run(t, func(*testing.T) brokertest.Engine { return brokertest.NewMemory() })
}

func TestMemoryHistory(t *testing.T) {
	t.Parallel()
	brokertest.RunHistory(t, func(*testing.T) brokertest.HistoryEngine { return brokertest.NewMemory() })
}

// A follower notices an outage that is over before it looks, and gets the last
// record again, which may be another one by then.
func TestMemoryShortOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		b := engine.HistoryBroker()
		defer b.Close()
		var heard followed
		appendAll := func(records ...string) {
			for _, r := range records {
				if err := b.Append(t.Context(), []byte(r)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := b.Follow(&heard); err != nil {
			t.Fatal(err)
		}
		appendAll("a", "b", "c")
		synctest.Wait()
		engine.Stop()
		engine.PutBack(1)
		engine.Start()
		appendAll("B", "C", "D")
		synctest.Wait()
		if want := (followed{"1 a", "2 b", "3 c", "away", "3 C", "4 D"}); !slices.Equal(heard, want) {
			t.Errorf("heard %q, want %q", heard, want)
		}
	})
}

// A followed is what the handler of a log heard.
type followed []string

func (f *followed) Record(_ string, seq uint64, record []byte) {
	*f = append(*f, fmt.Sprint(seq, " ", string(record)))
}

func (f *followed) Current(string, uint64) {}
func (f *followed) Away(error)             { *f = append(*f, "away") }

// A broker is for one hub.
func TestMemoryBrokerOfTwoHubs(t *testing.T) {
	m := brokertest.NewMemory()
	for _, broker := range []realtime.Broker{m.Broker(), m.HistoryBroker()} {
		hub := realtime.NewHub()
		hub.Broker = broker
		if err := hub.Publish(t.Context(), "a", realtime.Event{}); err != nil {
			t.Fatal(err)
		}
		if err := broker.Start(nil); err == nil || !strings.Contains(err.Error(), "make one for each hub") {
			t.Errorf("started twice: %v", err)
		}
		hub.Shutdown(t.Context())
	}
}
