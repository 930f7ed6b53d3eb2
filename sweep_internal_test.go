package realtime

import (
	"testing"
	"testing/synctest"
	"time"
)

// A clock that isn't wound stops after two revolutions: a stall adds no time.
func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clock{start: time.Now()}
		if c.now() == 0 {
			t.Error("now() is zero, which means never")
		}
		c.wind()
		look := func(want time.Duration) {
			t.Helper()
			if got := c.now(); got.Round(time.Microsecond) != want {
				t.Errorf("now() = %v, want %v", got, want)
			}
		}
		for i := range 5 {
			look(time.Duration(i) * revolution)
			time.Sleep(revolution)
			c.wind()
		}
		time.Sleep(time.Hour)
		look(7 * revolution)
		c.wind()
		look(7 * revolution)
		time.Sleep(revolution)
		look(8 * revolution)
	})
}
