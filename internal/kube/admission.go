package kube

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// WebhookSelector selects the webhook's objects. The names are those of the Helm
// chart.
const WebhookSelector = "app.kubernetes.io/component=webhook,app.kubernetes.io/part-of=manifold"

// Admission is the webhook as the API server's configuration names it.
type Admission struct {
	Namespace, Service string
	Ignored            bool // failurePolicy Ignore: pods are admitted when the webhook does not answer
	Replicas, Ready    int
}

// Admission returns how the API server calls the webhook for pods that select networks,
// or nil when no webhook is configured. It needs list validatingwebhookconfigurations,
// and list pods in the webhook's namespace.
func (a *Agents) Admission(ctx context.Context) (*Admission, error) {
	selected := &metav1.ListOptions{LabelSelector: WebhookSelector}
	answer := a.client.core.Get().AbsPath("/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations").
		VersionedParams(selected, metav1.ParameterCodec).Do(ctx)
	if err := answer.Error(); err != nil { // its text has the API server's message, which that of Raw lacks
		return nil, fmt.Errorf("list the webhook's configurations: %w", err)
	}
	raw, err := answer.Raw()
	if err != nil {
		return nil, fmt.Errorf("list the webhook's configurations: %w", err)
	}
	// The few fields of the configuration that are needed.
	var list struct {
		Items []struct {
			Webhooks []struct {
				FailurePolicy string `json:"failurePolicy"`
				ClientConfig  struct {
					Service struct {
						Namespace string `json:"namespace"`
						Name      string `json:"name"`
					} `json:"service"`
				} `json:"clientConfig"`
			} `json:"webhooks"`
		} `json:"items"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("read the webhook's configurations: %w", err)
	}
	if len(list.Items) == 0 || len(list.Items[0].Webhooks) == 0 {
		return nil, nil
	}
	hook := list.Items[0].Webhooks[0]
	out := &Admission{Namespace: hook.ClientConfig.Service.Namespace, Service: hook.ClientConfig.Service.Name, Ignored: hook.FailurePolicy == "Ignore"}
	pods := &corev1.PodList{}
	err = a.client.core.Get().Namespace(out.Namespace).Resource(resourcePods).VersionedParams(selected, metav1.ParameterCodec).Do(ctx).Into(pods)
	if err != nil {
		return nil, fmt.Errorf("list the webhook's pods in namespace %s: %w", out.Namespace, err)
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		out.Replicas++
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil {
				out.Ready++
			}
		}
	}
	return out, nil
}
