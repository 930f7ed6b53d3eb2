package realtime_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// A hub whose broker doesn't start serves its own clients, and tells everybody.
func TestBrokerDoesNotStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		var lines safeBuffer
		hub.Logger = textLogger(&lines)
		hub.Broker = deadBroker{}
		l := newPipeSite(t, hub).listen("")
		if err := hub.PublishAll(t.Context(), realtime.Event{Data: []byte("1")}); !errors.Is(err, realtime.ErrBrokerUnavailable) {
			t.Errorf("PublishAll: %v, want ErrBrokerUnavailable", err)
		}
		expect(t, l, "1")
		if !hub.Stats().BrokerDown {
			t.Error("the broker isn't counted as down")
		}
		synctest.Wait()
		if got := lines.String(); !strings.Contains(got, errDead.Error()) {
			t.Errorf("logged %q, want %q", got, errDead)
		}
	})
}

var errDead = errors.New("the engine is not configured")

// A deadBroker fails from the start on.
type deadBroker struct{}

func (deadBroker) Start(realtime.BrokerHandler) error            { return errDead }
func (deadBroker) Publish(context.Context, string, []byte) error { return errDead }
func (deadBroker) Subscribe(context.Context, string) error       { return errDead }
func (deadBroker) Unsubscribe(string) error                      { return nil }
func (deadBroker) Close() error                                  { return nil }
