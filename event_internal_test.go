package realtime

import (
	"bytes"
	"testing"
)

// Joined buffers keep their limits and are made once. One event needs none.
func TestJoinedBuffers(t *testing.T) {
	for _, tt := range []struct{ events, bytes, want int }{
		{1, 1, 1}, {64, 1, 1}, {65, 1, 2}, {128, 1, 2}, {1000, 10, 16},
		{32, 2048 - 4, 1}, {33, 2048 - 4, 2}, {2, maxJoinBytes, 2},
	} {
		var payloads []string
		for range tt.events {
			payloads = append(payloads, string(make([]byte, tt.bytes)))
		}
		r := runOf(payloads...)
		bufs := r.buffers(format{})
		if len(bufs) != tt.want {
			t.Errorf("%d events of %d bytes are %d buffers, want %d", tt.events, tt.bytes, len(bufs), tt.want)
		}
		var all []byte
		messages := 0
		for _, buf := range bufs {
			all, messages = append(all, buf.b...), messages+len(buf.ends)
			if buf.ends[len(buf.ends)-1] != len(buf.b) || len(buf.ends) > maxJoin || len(buf.ends) > 1 && len(buf.b) > maxJoinBytes {
				t.Errorf("a buffer of %d messages and %d bytes", len(buf.ends), len(buf.b))
			}
		}
		if !bytes.Equal(all, frames(opText, payloads...)) || messages != tt.events {
			t.Errorf("%d events of %d bytes: %d messages, or other bytes", tt.events, tt.bytes, messages)
		}
		if r.buffers(format{})[0] != bufs[0] {
			t.Error("each client has buffers of its own")
		}
		if tt.events == 1 && bufs[0] != r.events[0].buffer(format{}) {
			t.Error("an event alone is copied")
		}
	}
}

// The bytes of an event stream (WHATWG HTML §9.2.6). An id is the last field of
// its event: a reader may store it as it reads it.
func TestStreamBytes(t *testing.T) {
	for _, tt := range []struct {
		name            string
		event           *event
		plain, envelope string
	}{
		{"event",
			&event{Event: Event{ID: "e-7", Name: "n", Data: []byte("a\nb")}, topic: "t"},
			"event: n\ndata: a\ndata: b\nid: e-7\n\n",
			`data: {"id":"e-7","topic":"t","event":"n","data":"a\nb"}` + "\nid: e-7\n\n"},
		{"event without an id",
			&event{Event: Event{Binary: true, Data: []byte{0xff}}},
			"data: /w==\n\n",
			`data: {"data":"/w==","encoding":"base64"}` + "\n\n"},
		{"position", // with data, or Firefox and WebKit drop its id
			newPosition(7, "e-7"),
			"event: realtime.position\ndata: \nid: e-7\n\n",
			`data: {"id":"e-7"}` + "\nid: e-7\n\n"},
		{"reset",
			resetEvent,
			"event: reset\ndata: \n\n",
			`data: {"event":"reset","data":"","reset":true}` + "\n\n"},
		{"reset with a position",
			newReset("e-7"),
			"event: reset\ndata: \nid: e-7\n\n",
			`data: {"id":"e-7","event":"reset","data":"","reset":true}` + "\nid: e-7\n\n"},
	} {
		for enc, want := range map[encoding]string{plainStream: tt.plain, envelopeStream: tt.envelope} {
			if got := string(tt.event.append(nil, format{encoding: enc})); got != want {
				t.Errorf("%s in encoding %d:\ngot  %q\nwant %q", tt.name, enc, got, want)
			}
		}
	}
}
