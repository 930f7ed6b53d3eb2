package brokertest_test

import (
	"testing"

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
