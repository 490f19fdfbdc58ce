package apiserver

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
)

// Request is one request of the audit log.
type Request struct {
	Verb     string // get, list, watch, create, patch and so on
	Resource string // with subresource: pods, pods/status
	Name     string
	Code     int // HTTP status of the answer
}

// String returns "verb resource name".
func (r Request) String() string { return fmt.Sprintf("%s %s %s", r.Verb, r.Resource, r.Name) }

// Requests returns the requests of an account in order of completion. A watch counts
// when it ends.
func (s *Server) Requests(account string) (out []Request, err error) {
	log, err := os.ReadFile(s.path("audit.log"))
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(log) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // the API server is writing this line
		}
		var e struct {
			Verb string `json:"verb"`
			User struct {
				Username string `json:"username"`
			} `json:"user"`
			ObjectRef struct {
				Resource    string `json:"resource"`
				Subresource string `json:"subresource"`
				Name        string `json:"name"`
			} `json:"objectRef"`
			ResponseStatus struct {
				Code int `json:"code"`
			} `json:"responseStatus"`
		}
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, err
		}
		if e.User.Username != account {
			continue
		}
		r := Request{Verb: e.Verb, Resource: e.ObjectRef.Resource, Name: e.ObjectRef.Name, Code: e.ResponseStatus.Code}
		if e.ObjectRef.Subresource != "" {
			r.Resource += "/" + e.ObjectRef.Subresource
		}
		out = append(out, r)
	}
	return out, nil
}
