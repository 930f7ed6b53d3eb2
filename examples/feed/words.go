package main

import (
	"hash/fnv"
	"math/rand/v2"
	"strings"
)

// A writer makes up the words of an answer. It stands in for a language model
// and knows nothing. It is a Markov chain: for each two words in a row it knows
// the words that follow them in learned, and picks one of those by chance. The
// chance depends on the prompt alone, so the same prompt has the same answer.
type writer struct {
	chance    *rand.Rand
	last      [2]string // the words before the next one; empty at a sentence's start
	first     string    // the first word of all
	sentences int       // that are left
	written   int       // words
}

// learned is all that the writer has ever read.
const learned = `
An event stream is an answer that never has to end.
An event stream is one request whose answer grows while the page reads it.
An event stream is plain text, so you can read it with curl.
The server writes each event when it happens, and the page shows it at once.
The server writes each word when it has one, and the page shows it at once.
The server gives each event an id, and the page remembers the last one.
The page remembers the last id and sends it when it connects again.
The page reads the words as they come and doesn't wait for the last one.
The page asks once and then gets every word in order.
When the connection is lost, the page connects again by itself.
When the connection is lost, the words go on, because the server keeps them.
When the connection is back, the page gets the words that it lacks.
When the network is slow, the words come in larger pieces.
When the reader is slow, the words come in larger pieces, and nobody waits.
A browser connects again by itself and sends the last id that it saw.
A browser shows each word at once and doesn't wait for the whole answer.
A proxy that holds back an event stream makes the words come in larger pieces.
A proxy ends a connection that is silent for a minute, so the server sends a tick.
A tick is an event without an id, so it changes nothing about the last one.
A tick each second shows that the connection is alive.
A word is an event with an id, and the id says how many words there are.
A reader who comes late gets the whole answer and then each word as it comes.
A reader who leaves costs nothing, because the server notices it at once.
Two pages that watch the same answer see the same words in the same order.
Two readers get the same words, and the server keeps them once.
Many readers can watch the same answer, and each one has a place of its own.
Nothing is lost when the connection is cut between two words.
Nothing is sent twice, because the id says how many words the page has.
No word is sent twice, and no word is lost on the way.
If you stop the answer, the server writes no more words and every page knows it.
If you close the page, the words go on until the answer is over.
If you open the page again, you see the words that are there and then the next ones.
`

// followers has the words behind each two in a row, and starts the first word of
// each sentence.
var followers, starts = learn(learned)

func learn(text string) (followers map[[2]string][]string, starts []string) {
	followers = make(map[[2]string][]string)
	for sentence := range strings.Lines(strings.TrimSpace(text)) {
		var last [2]string
		for i, word := range strings.Fields(sentence) {
			if i == 0 {
				starts = append(starts, word)
			}
			followers[last] = append(followers[last], word)
			last = [2]string{last[1], word}
		}
	}
	return followers, starts
}

func newWriter(prompt string) *writer {
	hash := fnv.New64a()
	hash.Write([]byte(prompt))
	w := &writer{chance: rand.New(rand.NewPCG(hash.Sum64(), 0))}
	w.sentences = 5 + w.chance.IntN(4)
	// If the prompt has the first word of a sentence, the answer begins with it.
	for word := range strings.FieldsFuncSeq(strings.ToLower(prompt), func(r rune) bool { return r < 'a' || r > 'z' }) {
		for _, start := range starts {
			if len(word) > 2 && word == strings.ToLower(start) {
				w.first = start
			}
		}
	}
	return w
}

// next returns the next word with the space before it, and how many pauses it
// takes. It reports false when the answer is over.
func (w *writer) next() (word string, pauses int, ok bool) {
	if w.sentences == 0 || w.written == maxWords {
		return "", 0, false
	}
	choice := followers[w.last]
	word = choice[w.chance.IntN(len(choice))]
	space := " "
	pauses = 1
	switch {
	case w.written == 0:
		space = ""
		if w.first != "" {
			word = w.first
		}
	case w.last[1] == "": // a new sentence
		pauses = 4
		if w.chance.IntN(3) == 0 {
			space = "\n\n"
		}
	case strings.HasSuffix(w.last[1], ","):
		pauses = 2
	}
	w.written++
	w.last = [2]string{w.last[1], word}
	if strings.HasSuffix(word, ".") {
		w.last = [2]string{}
		w.sentences--
	}
	return space + word, pauses, true
}
