// Command deviceplugin is the labs' device plugin: it speaks the kubelet's
// device-plugin API and advertises the devices that its configuration lists.
//
//	deviceplugin --config FILE [--dir DIRECTORY] [--info-dir DIRECTORY]
//
// The configuration is JSON, see [Config]. Containers get the IDs of their devices in
// the environment, as the usual SR-IOV device plugin gives them: for resource
// lab.example/red, the variable PCIDEVICE_LAB_EXAMPLE_RED holds the IDs separated by
// commas. If a device has device information, the plugin writes it to a file at
// allocation, as the Device Information Specification says.
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
