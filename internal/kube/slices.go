package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"github.com/manifold-cni/manifold/podresources"
)

// resourceSlices is the resource name of ResourceSlices.
const resourceSlices = "resourceslices"

// Slices reads the attributes of claims' devices from the ResourceSlices of one node
// (resource.k8s.io/v1, Kubernetes 1.34). While [Slices.Run] runs, it uses one list and
// one watch, both restricted to the node by the API server; otherwise one list for each
// question. It implements [podresources.AttributeSource].
//
// A slice of devices that several nodes reach names no node, and is not seen.
type Slices struct {
	client   *Client
	node     string
	informer cache.SharedIndexInformer
	watch    watchState
}

// NewSlices returns the slices of node. It watches nothing before [Slices.Run].
func NewSlices(client *Client, node string) *Slices {
	s := &Slices{client: client, node: node}
	lw := cache.NewListWatchFromClient(client.resources, resourceSlices, metav1.NamespaceAll, s.selector())
	s.informer = cache.NewSharedIndexInformer(s.watch.observe(lw), &resourcev1.ResourceSlice{}, 0, nil)
	s.watch.install(s.informer, func(obj any) (any, error) {
		if slice, ok := obj.(*resourcev1.ResourceSlice); ok {
			return newSlice(slice), nil
		}
		return obj, nil // a slice already, or a deletion that the watch missed
	})
	return s
}

func (s *Slices) selector() fields.Selector {
	return fields.OneTermEqualSelector(resourcev1.ResourceSliceSelectorNodeName, s.node)
}

// Run lists and watches until ctx ends. It returns when its goroutines have returned.
func (s *Slices) Run(ctx context.Context) { s.informer.RunWithContext(ctx) }

// HasSynced reports whether the first list is complete.
func (s *Slices) HasSynced() bool { return s.informer.HasSynced() }

// Failing returns the latest failure to list or watch, and since when nothing has
// succeeded. err is nil while the informer hears from the API server. Memory holds the
// state as of since.
func (s *Slices) Failing() (since time.Time, err error) { return s.watch.failing() }

// slice is the part of a ResourceSlice that is kept.
type slice struct {
	metav1.ObjectMeta // name, UID and version alone, for client-go
	driver, pool      string
	generation        int64
	devices           map[string]podresources.Attributes
}

func newSlice(in *resourcev1.ResourceSlice) *slice {
	out := &slice{
		ObjectMeta: metav1.ObjectMeta{Name: in.Name, UID: in.UID, ResourceVersion: in.ResourceVersion},
		driver:     in.Spec.Driver, pool: in.Spec.Pool.Name, generation: in.Spec.Pool.Generation,
		devices: make(map[string]podresources.Attributes, len(in.Spec.Devices)),
	}
	for i := range in.Spec.Devices {
		published := map[string]string{}
		for name, value := range in.Spec.Devices[i].Attributes {
			if value.StringValue != nil {
				published[string(name)] = *value.StringValue
			}
		}
		out.devices[in.Spec.Devices[i].Name] = podresources.NewAttributes(published)
	}
	return out
}

// Attributes implements [podresources.AttributeSource]. Until the first list is
// complete it asks the API server, once per call.
func (s *Slices) Attributes(ctx context.Context, devices []*podresources.ClaimDevice) []podresources.Attributes {
	out := make([]podresources.Attributes, len(devices))
	known, err := s.slices(ctx)
	for i, d := range devices {
		if err != nil {
			out[i].Err = fmt.Errorf("ResourceSlices: %w: %w", podresources.ErrUnavailable, err)
			continue
		}
		out[i] = find(known, d)
	}
	return out
}

// slices returns the node's slices.
func (s *Slices) slices(ctx context.Context) ([]*slice, error) {
	var out []*slice
	if s.informer.HasSynced() {
		for _, obj := range s.informer.GetStore().List() {
			if one, ok := obj.(*slice); ok {
				out = append(out, one)
			}
		}
		return out, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.client.timeout)
	defer cancel()
	list := &resourcev1.ResourceSliceList{}
	err := s.client.resources.Get().MaxRetries(0).Resource(resourceSlices).
		VersionedParams(&metav1.ListOptions{FieldSelector: s.selector().String(), ResourceVersion: "0"}, metav1.ParameterCodec).Do(ctx).Into(list)
	if err != nil {
		return nil, fmt.Errorf("API server: %w", &apiError{ErrUnavailable, err})
	}
	for i := range list.Items {
		out = append(out, newSlice(&list.Items[i]))
	}
	return out, nil
}

// find looks for a device. A driver that changes its pool publishes slices of a higher
// generation beside those that it is about to delete: the highest one counts.
func find(known []*slice, d *podresources.ClaimDevice) podresources.Attributes {
	var out podresources.Attributes
	generation, found := int64(0), false
	for _, s := range known {
		if s.driver != d.Driver || s.pool != d.Pool || found && s.generation < generation {
			continue
		}
		if a, ok := s.devices[d.Name]; ok {
			out, generation, found = a, s.generation, true
		}
	}
	out.Source = "ResourceSlices"
	if !found {
		// The device existed when it was allocated: its driver may be about to publish
		// it anew.
		out.Err = fmt.Errorf("ResourceSlices: %w: no slice of this node has the device", podresources.ErrUnavailable)
	} else if out.DeviceID == "" && out.ResourceName == "" && out.PCIBusID == "" {
		out.Err = errors.New("ResourceSlices: the device publishes no attribute that identifies it")
	}
	return out
}

// addResources registers the kinds of the resource API that this package reads.
func addResources(s *runtime.Scheme) error {
	s.AddKnownTypes(resourcev1.SchemeGroupVersion, &resourcev1.ResourceSlice{}, &resourcev1.ResourceSliceList{})
	metav1.AddToGroupVersion(s, resourcev1.SchemeGroupVersion)
	return nil
}
