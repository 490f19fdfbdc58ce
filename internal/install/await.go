package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/kube"
)

// awaitPause is the pause between two reads of a DaemonSet.
const awaitPause = time.Second

// Await waits until every pod of a DaemonSet, "namespace/name" in the cluster of this
// pod, is ready, and prints the progress to out. Without a name it waits until ctx
// ends. The chart uninstalls with a DaemonSet that waits in this way, and with a Job
// that awaits the DaemonSet, because Helm waits only for Jobs.
func Await(ctx context.Context, daemonSet string, out io.Writer) error {
	if daemonSet == "" {
		<-ctx.Done()
		return nil
	}
	op := "await DaemonSet " + daemonSet
	namespace, name, ok := strings.Cut(daemonSet, "/")
	if !ok {
		return cnierr.New(op, cnierr.InvalidConfig, "not of the form namespace/name")
	}
	cfg, err := kube.Config("")
	if err != nil {
		return cnierr.New(op, cnierr.InvalidConfig, "%w", err)
	}
	client, err := kube.NewClient(cfg)
	if err != nil {
		return cnierr.New(op, cnierr.InvalidConfig, "%w", err)
	}
	defer client.Close()
	return awaitDaemonSet(ctx, client, namespace, name, out)
}

func awaitDaemonSet(ctx context.Context, client *kube.Client, namespace, name string, out io.Writer) error {
	for last := ""; ; {
		text := ""
		ready, all, err := client.DaemonSetReady(ctx, namespace, name)
		switch {
		case err == nil:
			text = fmt.Sprintf("ready on %d of %d nodes", ready, all)
		case errors.Is(err, kube.ErrUnavailable) || errors.Is(err, kube.ErrNotFound):
			text = err.Error()
		default:
			return cnierr.New("await DaemonSet "+namespace+"/"+name, cnierr.IO, "%w", err)
		}
		if text != last {
			fmt.Fprintln(out, text)
			last = text
		}
		if err == nil && all >= 0 && ready == all {
			return nil
		}
		select {
		case <-ctx.Done():
			return cnierr.New("await DaemonSet "+namespace+"/"+name, cnierr.IO, "%w", ctx.Err())
		case <-time.After(awaitPause):
		}
	}
}
