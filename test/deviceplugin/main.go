// Command deviceplugin is the labs' device plugin: it speaks the kubelet's
// device-plugin API and advertises the devices that its configuration lists.
//
//	deviceplugin --config FILE [--dir DIRECTORY] [--info-dir DIRECTORY]
//
// The configuration is JSON, see [Config]. A container gets its devices' IDs in
// the environment, as the usual SR-IOV device plugin gives them: for resource
// lab.example/red the variable PCIDEVICE_LAB_EXAMPLE_RED holds them, separated by
// commas. For devices with device information a file of it is written at
// allocation, as the specification of device information says.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	config := flag.String("config", "", "the configuration `file`")
	dir := flag.String("dir", "/var/lib/kubelet/device-plugins", "the kubelet's `directory` of device plugins")
	infoDir := flag.String("info-dir", "/var/run/k8s.cni.cncf.io/devinfo/dp", "the `directory` for device information")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	plugins, err := readConfig(*config, *infoDir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "deviceplugin:", err)
		os.Exit(1)
	}
	keepRegistered(ctx, *dir, plugins, slog.New(slog.NewTextHandler(os.Stderr, nil)))
}
