package journal

import (
	"bytes"
	"encoding/json"
	"io"
	"os"

	"github.com/manifold-cni/manifold/internal/plan"
)

// Remains is what the sound lines of a damaged journal tell about its sandbox.
type Remains struct {
	Pod plan.Pod // zero when the first line is damaged
	// OtherBoot reports that the journal was begun before this boot. It is false when
	// the first line is damaged, since then nobody knows.
	OtherBoot bool
	// Befores are the recorded states of devices before their delegates ran, in
	// order.
	Befores []json.RawMessage
}

// Remains reads what is left of the journal of k, skipping damaged lines. It is zero
// when the journal does not exist or cannot be read at all.
func (d Dir) Remains(k Key) Remains {
	data, err := d.content(k)
	if err != nil {
		return Remains{}
	}
	return remains(data)
}

// content reads the journal of k, up to maxFile bytes.
func (d Dir) content(k Key) ([]byte, error) {
	f, err := os.Open(d.file(k))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// remains reads the sound lines of a damaged journal.
func remains(data []byte) (out Remains) {
	for line := range bytes.Lines(data) {
		body, err := checkLine(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			continue
		}
		// Try both kinds of record on every line: the first line may be lost.
		var h header
		if json.Unmarshal(body, &h) == nil && h.Plan != nil {
			out.Pod, out.OtherBoot = h.Plan.Pod, h.Boot != bootID()
		}
		var s Step
		if json.Unmarshal(body, &s) == nil && s.Before != nil {
			out.Befores = append(out.Befores, s.Before)
		}
	}
	return out
}
