package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// keeper issues and rotates the certificates, publishes the authorities in the
// webhook configurations and holds the serving certificate. Every replica runs one
// and there is no leader: a step is a single update of the Secret, and the API server
// rejects all concurrent updates but one as conflicts.
type keeper struct {
	client        client.Client
	log           *slog.Logger
	secret        types.NamespacedName
	configuration string // name of both configurations
	names         []string
	life          lifetimes
	settle        time.Duration // how long until every API server trusts a published authority
	interval      time.Duration
	gauge         func(ca, serving time.Time)

	current   atomic.Pointer[tls.Certificate]
	published atomic.Bool // the authorities are published, and current is set
	newest    []byte      // the newest published authority, in DER
	since     time.Time   // when this replica first published or saw newest
}

// Start implements manager.Runnable: it checks the certificates every interval until
// ctx ends. A failed check is logged and repeated.
func (k *keeper) Start(ctx context.Context) error {
	ticker := time.NewTicker(k.interval)
	defer ticker.Stop()
	for {
		if err := k.step(ctx, time.Now()); err != nil && ctx.Err() == nil {
			k.log.Error("certificates neither checked nor published; trying again", "after", k.interval.String(), "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// certificate returns the serving certificate; it is tls.Config's GetCertificate.
func (k *keeper) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c := k.current.Load()
	if c == nil {
		return nil, errors.New("no certificate has been issued yet")
	}
	return c, nil
}

// step reads the Secret, replaces the certificates that are due and publishes the
// authorities.
func (k *keeper) step(ctx context.Context, now time.Time) error {
	secret := &corev1.Secret{}
	if err := k.client.Get(ctx, k.secret, secret); err != nil {
		return fmt.Errorf("read Secret %s, which must exist even while it is empty: %w", k.secret, err)
	}
	m := readMaterial(secret.Data)
	changed, err := m.next(k.names, k.life, now, k.trusted(m, now))
	if err != nil {
		return err
	}
	if changed {
		if secret.Data, err = m.data(); err != nil {
			return err
		}
		err := k.client.Update(ctx, secret)
		if apierrors.IsConflict(err) {
			return nil // another replica did this step; the next check reads the result
		}
		if err != nil {
			return fmt.Errorf("write Secret %s: %w", k.secret, err)
		}
		k.log.Info("certificates renewed", "authorities", len(m.cas), "authority until", m.cas[0].NotAfter, "certificate until", m.serving.Leaf.NotAfter)
	}
	k.current.Store(m.serving)
	k.gauge(m.cas[0].NotAfter, m.serving.Leaf.NotAfter)
	if err := k.publish(ctx, m.bundle()); err != nil {
		return err
	}
	k.published.Store(true)
	if newest := m.cas[0].Raw; !bytes.Equal(newest, k.newest) {
		k.newest, k.since = newest, now
	}
	return nil
}

// trusted reports whether the newest authority has been published for the settle time.
func (k *keeper) trusted(m *material, now time.Time) bool {
	return len(m.cas) > 0 && bytes.Equal(m.cas[0].Raw, k.newest) && now.Sub(k.since) >= k.settle
}

// publish writes the authorities into the two webhook configurations. A cluster may
// use only one of them, so one may be absent, but not both.
func (k *keeper) publish(ctx context.Context, bundle []byte) error {
	mutating, validating := &admissionregistrationv1.MutatingWebhookConfiguration{}, &admissionregistrationv1.ValidatingWebhookConfiguration{}
	missing := 0
	for _, object := range []client.Object{mutating, validating} {
		err := k.client.Get(ctx, types.NamespacedName{Name: k.configuration}, object)
		if apierrors.IsNotFound(err) {
			missing++
			continue
		}
		if err != nil {
			return fmt.Errorf("read webhook configuration %s: %w", k.configuration, err)
		}
		if !trust(object, bundle) {
			continue
		}
		if err := k.client.Update(ctx, object); err != nil && !apierrors.IsConflict(err) {
			return fmt.Errorf("write webhook configuration %s: %w", k.configuration, err)
		} else if err != nil {
			return fmt.Errorf("write webhook configuration %s: it was changed by another client meanwhile", k.configuration)
		}
	}
	if missing == 2 {
		return fmt.Errorf("publish authorities: there is no webhook configuration %s", k.configuration)
	}
	return nil
}

// trust sets caBundle in every webhook of a configuration, and reports whether that
// changed the configuration.
func trust(configuration client.Object, bundle []byte) bool {
	var clients []*admissionregistrationv1.WebhookClientConfig
	switch c := configuration.(type) {
	case *admissionregistrationv1.MutatingWebhookConfiguration:
		for i := range c.Webhooks {
			clients = append(clients, &c.Webhooks[i].ClientConfig)
		}
	case *admissionregistrationv1.ValidatingWebhookConfiguration:
		for i := range c.Webhooks {
			clients = append(clients, &c.Webhooks[i].ClientConfig)
		}
	}
	changed := false
	for _, c := range clients {
		if !bytes.Equal(c.CABundle, bundle) {
			c.CABundle, changed = bundle, true
		}
	}
	return changed
}
