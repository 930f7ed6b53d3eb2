package realtime

import (
	"slices"
	"strings"
)

// Compressed messages (RFC 7692), but for what goes out: an event is compressed
// once for all, see event.go.

// agreeOnDeflate returns what answers the first offer of permessage-deflate that
// the hub can keep to, or "" if there is none. Each side compresses each message
// by itself, with the whole window.
func agreeOnDeflate(header []string) (agreed string) {
	for offer := range listed(header) {
		if agreed := acceptDeflate(offer); agreed != "" {
			return agreed
		}
	}
	return ""
}

// acceptDeflate returns the answer to one offer, or "" to decline it (RFC 7692
// §7.1).
func acceptDeflate(offer string) string {
	name, params, more := cutUnquoted(offer, ";")
	if strings.TrimSpace(name) != "permessage-deflate" {
		return ""
	}
	agreed := "permessage-deflate; client_no_context_takeover; server_no_context_takeover"
	seen := make([]string, 0, 4)
	for more {
		var param string
		param, params, more = cutUnquoted(params, ";")
		name, value, hasValue := strings.Cut(param, "=")
		name, value = strings.TrimSpace(name), unquoted(strings.TrimSpace(value))
		if slices.Contains(seen, name) {
			return ""
		}
		seen = append(seen, name)
		switch name {
		case "client_no_context_takeover", "server_no_context_takeover":
			if hasValue {
				return ""
			}
		case "client_max_window_bits":
			if hasValue && !isWindowBits(value) {
				return ""
			}
		case "server_max_window_bits":
			if value != "15" { // compress/flate has no smaller window
				return ""
			}
			agreed += "; server_max_window_bits=15" // without it, the client would have to give up (§7.1.2.1)
		default:
			return ""
		}
	}
	return agreed
}

// isWindowBits reports whether s is a window's size as RFC 7692 §7.1.2 writes it.
func isWindowBits(s string) bool {
	return len(s) == 1 && (s == "8" || s == "9") || len(s) == 2 && "10" <= s && s <= "15"
}

// unquoted returns the content of a quoted string, or s if it is none. Escapes
// stay: no value that is known here needs one.
func unquoted(s string) string {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		return s[1 : len(s)-1]
	}
	return s
}
