package kube

import (
	"context"
	"encoding/json"
	"fmt"
)

// DaemonSetReady returns the number of nodes on which a DaemonSet's pod is ready, and
// the number of nodes that should run one: -1 until its controller has seen the latest
// generation. Errors are as for [Writer.PublishStatus].
func (c *Client) DaemonSetReady(ctx context.Context, namespace, name string) (ready, all int, err error) {
	op := "read DaemonSet " + namespace + "/" + name
	if err := checkNames("DaemonSet", namespace, name); err != nil {
		return 0, -1, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	raw, err := c.core.Get().AbsPath("/apis/apps/v1/namespaces", namespace, "daemonsets", name).MaxRetries(0).Do(ctx).Raw()
	if err != nil {
		return 0, -1, writeError(op, err)
	}
	// The three numbers of apps/v1 that are needed.
	var ds struct {
		Metadata struct {
			Generation int64 `json:"generation"`
		} `json:"metadata"`
		Status struct {
			ObservedGeneration     int64 `json:"observedGeneration"`
			DesiredNumberScheduled int   `json:"desiredNumberScheduled"`
			NumberReady            int   `json:"numberReady"`
		} `json:"status"`
	}
	if err := json.Unmarshal(raw, &ds); err != nil {
		return 0, -1, fmt.Errorf("%s: %w", op, err)
	}
	if ds.Status.ObservedGeneration < max(ds.Metadata.Generation, 1) {
		return 0, -1, nil
	}
	return ds.Status.NumberReady, ds.Status.DesiredNumberScheduled, nil
}
