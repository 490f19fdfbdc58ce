// Command shell starts the labs' cluster with Manifold installed and opens a shell on
// its node, with kubectl, ctr and helm set up for it. The cluster ends with the shell.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"

	"github.com/manifold-cni/manifold/test/cluster"
)

func main() {
	code, err := cluster.Enter()
	if err == nil && code < 0 {
		code, err = shell(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		code = 1
	}
	os.Exit(code)
}

func shell(ctx context.Context) (int, error) {
	c, err := cluster.Start(ctx)
	if err != nil {
		return 0, err
	}
	if err := c.Install(ctx); err != nil {
		return 0, err
	}
	env, err := c.Environment()
	if err != nil {
		return 0, err
	}
	fmt.Println("kubectl, kubectl manifold, helm and ctr are set up for this cluster; the image for pods is", cluster.BoxImage)
	cmd := exec.Command("bash", "-i")
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = os.Stdin, os.Stdout, os.Stderr, env
	_ = cmd.Run() // its status is that of the last command typed
	return 0, c.Stop()
}
