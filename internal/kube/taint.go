package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// taintPatch is a JSON merge patch of a node's taints. The API server refuses it when
// the node has changed since it was read.
type taintPatch struct {
	Metadata struct {
		ResourceVersion string `json:"resourceVersion"`
	} `json:"metadata"`
	Spec struct {
		Taints []corev1.Taint `json:"taints"`
	} `json:"spec"`
}

// RemoveTaint removes every taint with that key from the writer's node. A node without
// one is left alone. Errors are as for [Writer.PublishStatus]; [ErrUnavailable] also
// stands for a conflict with another writer.
func (w *Writer) RemoveTaint(ctx context.Context, key string) error {
	op := fmt.Sprintf("remove taint %s of node %s", key, w.node)
	reading, cancel := context.WithTimeout(ctx, w.client.timeout)
	defer cancel()
	raw, err := w.client.core.Get().MaxRetries(0).Resource("nodes").Name(w.node).Do(reading).Raw()
	if err != nil {
		return writeError(op, err)
	}
	var patch taintPatch
	if err := json.Unmarshal(raw, &patch); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	before := len(patch.Spec.Taints)
	patch.Spec.Taints = slices.DeleteFunc(patch.Spec.Taints, func(t corev1.Taint) bool { return t.Key == key })
	if len(patch.Spec.Taints) == before {
		return nil
	}
	body, err := json.Marshal(patch)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	writing, cancel := context.WithTimeout(ctx, w.client.timeout)
	defer cancel()
	return writeError(op, w.client.core.Patch(types.MergePatchType).MaxRetries(0).Resource("nodes").Name(w.node).Body(body).Do(writing).Error())
}
