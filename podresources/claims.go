package podresources

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/manifold-cni/manifold/checkpoint"
)

// mayClaim reports whether the pod's spec allows for devices of claims: it names
// claims, or requests a resource with a vendor's name, which a DRA driver may serve.
func (p *Pod) mayClaim() bool {
	return len(p.Claims) > 0 || p.Extended != nil || slices.ContainsFunc(p.Containers, func(c Container) bool {
		return len(c.Claims) > 0 || slices.ContainsFunc(c.Resources, func(r string) bool { return strings.Contains(r, "/") })
	})
}

// decideAll decides about the devices of device plugins and those of claims. A problem
// with claims does not withhold the plugins' devices: [Allocation].ClaimsErr reports it
// to callers that need a claim's device. In turn, plugin sources that are unavailable
// do not withhold the claims' devices of a pod that has no others.
func (v *view) decideAll() decision {
	d, c := v.decide(), v.decideClaims()
	if errors.Is(d.err, ErrUnavailable) && v.pluginsAside() && c.alloc != nil && len(c.alloc.Devices) > 0 {
		d = decision{alloc: &Allocation{}}
	}
	if d.err != nil {
		return d
	}
	d.again = max(d.again, c.again)
	if c.err != nil {
		d.alloc.ClaimsErr = c.err
		return d
	}
	d.alloc.Devices = append(d.alloc.Devices, c.alloc.Devices...)
	d.alloc.Notes = append(d.alloc.Notes, c.alloc.Notes...)
	return d
}

// pluginsAside reports whether a pod with known claims has no other devices. The
// kubelet writes the device plugins' checkpoint before it prepares claims, so a pod
// without entries there has none. If no source for device plugins is configured, nobody
// wants their devices.
func (v *view) pluginsAside() bool {
	return v.memErr == nil || errors.Is(v.memErr, errNoSource) && errors.Is(v.liveErr, errNoSource)
}

// decideClaims applies the package comment's table of claims.
func (v *view) decideClaims() decision {
	known := v.claimsErr == nil && v.pod.UID != ""
	switch {
	case known && len(v.ownClaims) > 0:
		return decision{alloc: v.joinClaims()}
	case !v.pod.mayClaim():
		return decision{alloc: &Allocation{}}
	case known && len(v.liveClaims) > 0:
		return decision{err: fmt.Errorf("%w: it lists %s, and its checkpoint has no claim of pod UID %s",
			ErrOtherPod, v.liveClaims[0].Claim, v.pod.UID), again: longer}
	case known:
		return decision{alloc: &Allocation{}}
	case v.liveErr != nil && len(v.pod.Claims) > 0:
		return decision{err: fmt.Errorf("%w: API: %w; checkpoint of claims: %w", ErrUnavailable, causeOf(v.liveErr), v.claimsGap()), again: longer}
	}
	return v.decideLiveClaims()
}

// claimsGap tells why the checkpoint of claims has no answer.
func (v *view) claimsGap() error {
	if v.claimsErr != nil {
		return v.claimsErr
	}
	return errors.New("the runtime gave no UID")
}

// decideLiveClaims decides by the API alone. The API answers by the pod's name, so the
// names of the claims must show whether they are this pod's.
func (v *view) decideLiveClaims() decision {
	a, index := &Allocation{}, map[string]int{}
	var foreign *ClaimDevice
	for _, d := range v.liveClaims {
		c := *d.Claim
		if !v.pod.uses(&c) {
			foreign = d.Claim
			continue
		}
		k := c.key()
		i, ok := index[k]
		if !ok {
			i = len(a.Devices)
			index[k] = i
			a.Devices = append(a.Devices, Device{PluginIndex: -1, Source: FromAPI, Claim: &c})
			v.pod.describe(&a.Devices[i])
		}
		if out := &a.Devices[i]; !slices.Contains(out.Containers, d.Container) && len(v.pod.holders(out.Claim)) == 0 {
			out.Containers = append(out.Containers, d.Container)
		}
	}
	if foreign != nil && len(a.Devices) == 0 {
		return decision{err: fmt.Errorf("%w: it lists %s, which the pod's spec and status do not name", ErrOtherPod, foreign), again: longer}
	}
	if foreign != nil {
		note(a, "left out: %s, which the pod's spec and status do not name", foreign)
	}
	if len(a.Devices) > 0 && v.claimsErr != nil && !errors.Is(v.claimsErr, errNoSource) {
		note(a, "claims are from the kubelet's API alone, because the checkpoint of claims is unusable: %v", v.claimsErr)
	}
	v.arrangeClaims(a.Devices)
	return decision{alloc: a}
}

// joinClaims lists the devices of this pod's claims in the checkpoint, each once.
func (v *view) joinClaims() *Allocation {
	a, seen, listed := &Allocation{}, map[string]bool{}, map[string][]string{}
	for _, d := range v.liveClaims {
		listed[d.Claim.key()] = append(listed[d.Claim.key()], d.Container)
	}
	for i := range v.ownClaims {
		c := &v.ownClaims[i]
		for _, dev := range c.Devices {
			out := Device{PluginIndex: -1, Source: FromCheckpoint, Claim: NewClaimDevice(c, &dev)}
			k := out.Claim.key()
			if seen[k] {
				continue
			}
			seen[k] = true
			if len(listed[k]) > 0 {
				out.Source = FromBoth
			}
			v.pod.describe(&out)
			if len(out.Containers) == 0 {
				out.Containers = slices.Compact(slices.Sorted(slices.Values(listed[k])))
			}
			a.Devices = append(a.Devices, out)
		}
	}
	if v.liveErr != nil && !errors.Is(v.liveErr, errNoSource) {
		note(a, "claims are from the kubelet's checkpoint alone, because its API does not answer: %v", v.liveErr)
	}
	v.arrangeClaims(a.Devices)
	return a
}

// NewClaimDevice converts a claim's device from the checkpoint.
func NewClaimDevice(c *checkpoint.Claim, d *checkpoint.ClaimDevice) *ClaimDevice {
	return &ClaimDevice{
		Namespace: c.Namespace, Claim: c.Name, ClaimUID: c.UID, Requests: d.Requests,
		Driver: d.Driver, Pool: d.Pool, Name: d.Name, ShareID: d.ShareID,
	}
}

// key identifies a device regardless of its claim.
func (d *ClaimDevice) key() string {
	return strings.Join([]string{d.Driver, d.Pool, d.Name, d.ShareID}, "\x00")
}

// uses reports whether the pod's spec or status names the device's claim. The generated
// name of a claim from a template may be unknown; its prefix is known.
func (p *Pod) uses(c *ClaimDevice) bool {
	return c.Namespace == p.Namespace && (p.claim(c.Claim) != nil || p.isExtended(c.Claim))
}

// claim returns the pod's entry for a ResourceClaim, or nil.
func (p *Pod) claim(name string) *PodClaim {
	for i := range p.Claims {
		if p.Claims[i].Claim == name {
			return &p.Claims[i]
		}
	}
	for i := range p.Claims {
		if c := &p.Claims[i]; c.Template && c.Claim == "" && generated(name, p.Name, c.Name) {
			return c
		}
	}
	return nil
}

// isExtended reports whether a ResourceClaim is the scheduler's claim that backs the
// pod's extended resources.
func (p *Pod) isExtended(name string) bool {
	if p.Extended != nil {
		return p.Extended.Claim == name
	}
	base := p.Name + "-extended-resources-"
	random, ok := strings.CutPrefix(name, base[:min(len(base), maxGenerated)])
	return ok && len(random) == randomLength
}

// Lengths of generated names, in bytes. The API server keeps at most maxGenerated bytes
// of a base name and appends randomLength random characters. For claims from templates,
// Kubernetes shortens the pod's and the claim's name to maxTemplated bytes together.
const (
	randomLength = 5
	maxGenerated = 58
	maxTemplated = 57
)

// generated reports whether name is one that Kubernetes generates for the pod's claim
// from a template.
func generated(name, pod, claim string) bool {
	base := pod + "-" + claim + "-"
	if n := len(base); n > maxTemplated {
		base = pod[:len(pod)*maxTemplated/n] + "-" + claim[:len(claim)*maxTemplated/n]
	}
	random, ok := strings.CutPrefix(name, base)
	return ok && len(random) == randomLength
}

// describe fills in what the pod's spec and status know of a claim's device: the pod's
// name for the claim, the extended resource, and the containers.
func (p *Pod) describe(d *Device) {
	c := d.Claim
	if pc := p.claim(c.Claim); pc != nil {
		c.PodClaim = pc.Name
	} else if p.isExtended(c.Claim) {
		c.Extended = p.extendedResource(c)
	}
	d.Containers = p.holders(c)
}

// learned describes a device again after a source revealed the requests that the
// kubelet did not tell. If the spec names no holders, those that the API listed remain.
func (p *Pod) learned(d *Device) {
	listed := d.Containers
	if p.describe(d); len(d.Containers) == 0 {
		d.Containers = listed
	}
}

// extendedResource returns the extended resource that a device of the scheduler's claim
// backs: by the pod's status if it tells, else by the request's name.
func (p *Pod) extendedResource(c *ClaimDevice) string {
	for _, r := range c.Requests {
		if p.Extended == nil {
			if container, resource, ok := p.numbered(r); ok {
				return p.Containers[container].Resources[resource]
			}
			continue
		}
		for _, m := range p.Extended.Requests {
			if m.Request == r {
				return m.Resource
			}
		}
	}
	return ""
}

// numbered parses a request name as the scheduler builds it,
// "container-<n>-request-<m>": n counts all containers, init containers first, and m
// counts the container's requested resources in the order of their names.
func (p *Pod) numbered(request string) (container, resource int, ok bool) {
	rest, ok := strings.CutPrefix(request, "container-")
	if !ok {
		return 0, 0, false
	}
	c, r, _ := strings.Cut(rest, "-request-")
	container, errC := strconv.Atoi(c)
	resource, errR := strconv.Atoi(r)
	ok = errC == nil && errR == nil && container >= 0 && container < len(p.Containers) &&
		resource >= 0 && resource < len(p.Containers[container].Resources)
	return container, resource, ok
}

// holders returns the containers that use a claim's device, in the pod's order; nil if
// the pod's spec does not tell.
func (p *Pod) holders(c *ClaimDevice) []string {
	var out []string
	for i := range p.Containers {
		if p.holds(i, c) {
			out = append(out, p.Containers[i].Name)
		}
	}
	return out
}

// holds reports whether container i uses a claim's device.
func (p *Pod) holds(i int, c *ClaimDevice) bool {
	ct := &p.Containers[i]
	if c.Extended == "" {
		return c.PodClaim != "" && slices.ContainsFunc(ct.Claims, func(u ContainerClaim) bool {
			return u.Name == c.PodClaim && (u.Request == "" || len(c.Requests) == 0 || c.Serves(u.Request))
		})
	}
	if p.Extended != nil {
		return slices.ContainsFunc(p.Extended.Requests, func(m ExtendedRequest) bool { return m.Container == ct.Name && c.Serves(m.Request) })
	}
	return slices.ContainsFunc(c.Requests, func(r string) bool {
		container, _, ok := p.numbered(r)
		return ok && container == i
	})
}

// Serves reports whether the device serves a request of its claim, directly or through
// one of its subrequests.
func (d *ClaimDevice) Serves(request string) bool {
	return slices.ContainsFunc(d.Requests, func(r string) bool {
		base, _, _ := strings.Cut(r, "/")
		return r == request || base == request
	})
}

// arrangeClaims sorts claims' devices by the first container that uses them, in the
// pod's order, then by the names of claim and requests.
func (v *view) arrangeClaims(devices []Device) {
	inPod := v.pod.byContainer()
	first := func(d *Device) string {
		if len(d.Containers) == 0 {
			return ""
		}
		return d.Containers[0]
	}
	for i := range devices {
		slices.SortFunc(devices[i].Containers, inPod)
	}
	slices.SortFunc(devices, func(a, b Device) int {
		x, y := a.Claim, b.Claim
		return cmp.Or(inPod(first(&a), first(&b)), cmp.Compare(x.PodClaim, y.PodClaim), cmp.Compare(x.Claim, y.Claim),
			slices.Compare(x.Requests, y.Requests), cmp.Compare(x.key(), y.key()))
	})
}
