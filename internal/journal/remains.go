package journal

import (
	"bytes"
	"encoding/json"
	"io"
	"os"

	"github.com/manifold-cni/manifold/internal/plan"
)

// Remains are what the sound lines of a damaged journal tell of its sandbox.
type Remains struct {
	Pod plan.Pod // zero where the first line is damaged
	// OtherBoot says that the journal was begun before this boot. Where the first
	// line is damaged nobody knows, and it is false.
	OtherBoot bool
	// Befores are what was recorded of devices before their delegates ran, in order.
	Befores []json.RawMessage
}

// Remains reads what there is of the journal of k, past all damage. Of a journal
// that is not there, or cannot be read at all, nothing is.
func (d Dir) Remains(k Key) Remains {
	f, err := os.Open(d.file(k))
	if err != nil {
		return Remains{}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return Remains{}
	}
	return remains(data)
}

// remains reads the lines of a damaged journal.
func remains(data []byte) (out Remains) {
	for line := range bytes.Lines(data) {
		body, err := checkLine(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			continue
		}
		// Whichever it is: the first line may be lost.
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
