package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A page is the README or a file of this directory.
type page struct {
	path   string // from this directory
	text   string
	blocks []block
}

// A block is a fenced block of code.
type block struct {
	lang string
	line int // of the first line of text
	text string
}

// name returns a name for subtests and files.
func (p page) name() string { return strings.TrimSuffix(filepath.Base(p.path), ".md") }

// pages returns all pages.
func pages(t *testing.T) (all []page) {
	t.Helper()
	paths, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(paths, "../README.md") {
		text, err := os.ReadFile(dir + "/" + path) // go test notices changes of files whose path begins with the module's
		if err != nil {
			t.Fatal(err)
		}
		p := page{path: path, text: string(text)}
		var open *block
		for i, line := range strings.Split(p.text, "\n") {
			fence, lang, _ := strings.Cut(line, "```")
			switch {
			case strings.TrimSpace(fence) != "" || fence == line:
				if open != nil {
					open.text += line + "\n"
				}
			case open == nil:
				open = &block{lang: lang, line: i + 2}
			default:
				p.blocks = append(p.blocks, *open)
				open = nil
			}
		}
		if open != nil {
			t.Errorf("%s:%d: the block doesn't end", path, open.line)
		}
		all = append(all, p)
	}
	return all
}

// Each block has a language that some test checks.
func TestLanguages(t *testing.T) {
	checked := map[string]bool{"": true, "go": true, "sh": true, "yaml": true, "js": true, "ts": true, "tsx": true, "html": true,
		"nginx": true, "caddy": true, "haproxy": true}
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if !checked[b.lang] {
				t.Errorf("%s:%d: nothing checks a block of %s", p.path, b.line, b.lang)
			}
		}
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)|(?:src|srcset)="([^"]+)"`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	dropped = regexp.MustCompile(`[^\p{L}\p{N} _-]`) // from a heading, to make an anchor
)

// anchors returns the anchors of a page's headings.
func anchors(text string) map[string]bool {
	all := make(map[string]bool)
	for _, h := range heading.FindAllStringSubmatch(text, -1) {
		all[strings.ReplaceAll(strings.ToLower(dropped.ReplaceAllString(h[1], "")), " ", "-")] = true
	}
	return all
}

// Links lead to files and headings that there are. The index and the README lead
// to each page.
func TestLinks(t *testing.T) {
	_, err := os.Stat("images")
	noImages := err != nil // the command in e2e that makes them hasn't been run
	linked := make(map[string]bool)
	for _, p := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(p.text, -1) {
			target, anchor, _ := strings.Cut(m[1]+m[2], "#")
			if strings.Contains(target, "://") {
				continue
			}
			file := filepath.Join(filepath.Dir(p.path), target)
			if noImages && strings.HasSuffix(file, ".png") {
				continue
			}
			if target == "" {
				file = p.path
			}
			text, err := os.ReadFile(file)
			if info, statErr := os.Stat(file); statErr == nil && info.IsDir() {
				err = nil
			}
			if err != nil {
				t.Errorf("%s: %v", p.path, err)
				continue
			}
			if anchor != "" && !anchors(string(text))[anchor] {
				t.Errorf("%s: %s has no heading #%s", p.path, file, anchor)
			}
			linked[p.path+" to "+file] = true
		}
	}
	for _, p := range pages(t) {
		if p.name() == "README" {
			continue
		}
		for _, index := range []string{"README.md to " + p.path, "../README.md to ../docs/" + p.path} {
			if !linked[index] {
				t.Errorf("no link leads from %s", index)
			}
		}
	}
}
