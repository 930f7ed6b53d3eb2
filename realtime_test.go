package realtime_test

import (
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"testing"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

func TestJSON(t *testing.T) {
	e, err := realtime.JSON("price", map[string]any{"a": 1, "b": "<é>"})
	want := realtime.Event{Name: "price", Data: []byte(`{"a":1,"b":"\u003cé\u003e"}`)}
	if err != nil || !reflect.DeepEqual(e, want) {
		t.Errorf("got %+v, %v, want %+v", e, err, want)
	}
	e, err = realtime.JSON("price", math.NaN())
	if _, ok := errors.AsType[*json.UnsupportedValueError](err); !ok || !reflect.DeepEqual(e, realtime.Event{}) {
		t.Errorf("of NaN got %+v, %v, want json's error", e, err)
	}
}
