package agent

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/manifold-cni/manifold/podresources"
)

// claimsOf returns the resource claims of a pod: those that its spec names, with the
// generated names from its status for those that come from templates, and the claim
// that the scheduler created for the pod's extended resources.
func claimsOf(p *corev1.Pod) ([]podresources.PodClaim, *podresources.ExtendedClaim) {
	var claims []podresources.PodClaim
	for i := range p.Spec.ResourceClaims {
		in := &p.Spec.ResourceClaims[i]
		c := podresources.PodClaim{Name: in.Name, Template: in.ResourceClaimTemplateName != nil}
		if in.ResourceClaimName != nil {
			c.Claim = *in.ResourceClaimName
		}
		for _, s := range p.Status.ResourceClaimStatuses {
			if c.Template && s.Name == in.Name && s.ResourceClaimName != nil {
				c.Claim = *s.ResourceClaimName
			}
		}
		claims = append(claims, c)
	}
	status := p.Status.ExtendedResourceClaimStatus
	if status == nil {
		return claims, nil
	}
	extended := &podresources.ExtendedClaim{Claim: status.ResourceClaimName}
	for _, m := range status.RequestMappings {
		extended.Requests = append(extended.Requests, podresources.ExtendedRequest{
			Container: m.ContainerName, Resource: m.ResourceName, Request: m.RequestName,
		})
	}
	return claims, extended
}

// containerOf returns what is needed of a container: its kind, its claims, and the
// resources that it requests.
func containerOf(c *corev1.Container, init, restartable bool) podresources.Container {
	out := podresources.Container{Name: c.Name, Init: init, Restartable: restartable}
	for _, claim := range c.Resources.Claims {
		out.Claims = append(out.Claims, podresources.ContainerClaim{Name: claim.Name, Request: claim.Request})
	}
	for _, list := range []corev1.ResourceList{c.Resources.Requests, c.Resources.Limits} {
		for name := range list {
			if !slices.Contains(out.Resources, string(name)) {
				out.Resources = append(out.Resources, string(name))
			}
		}
	}
	slices.Sort(out.Resources)
	return out
}
