package netattach_test

import (
	"fmt"

	"github.com/manifold-cni/manifold/netattach"
)

func ExampleParseSelections() {
	selections, err := netattach.ParseSelections(`[{"name": "fast", "interface": "dpdk0", "manifold.dev/container": "rx"}, {"name": "storage", "namespace": "infra"}]`, "shop")
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, s := range selections {
		fmt.Printf("%s container=%q\n", s, s.Container)
	}
	_, err = netattach.ParseSelections("fast@../x", "shop")
	fmt.Println(err)
	// Output:
	// shop/fast@dpdk0 container="rx"
	// infra/storage container=""
	// entry 1 ("shop/fast@../x"): interface: "../x" has a character that interface names cannot have
}

func ExampleConfig_Render() {
	config, err := netattach.ParseConfig([]byte(`{"cniVersion": "1.0.0", "type": "host-device", "serial": 12345678901234567890}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	rendered, _, err := config.Render(netattach.RenderOptions{Name: "fast", DeviceID: "0000:21:10.4"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(string(rendered))
	// Output:
	// {"cniVersion":"1.0.0","name":"fast","plugins":[{"deviceID":"0000:21:10.4","pciBusID":"0000:21:10.4","serial":12345678901234567890,"type":"host-device"}]}
}

func ExampleNewStatus() {
	status, err := netattach.NewStatus([]byte(`{"cniVersion": "1.0.0", "interfaces": [{"name": "net1", "sandbox": "/run/netns/x"}],
		"ips": [{"address": "10.1.2.3/24", "interface": 0}]}`), netattach.StatusOptions{Name: "shop/fast", IfName: "net1", MTU: 1500})
	if err != nil {
		fmt.Println(err)
		return
	}
	text, err := netattach.MarshalStatuses([]netattach.Status{status})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(text)
	// Output:
	// [
	//     {
	//         "name": "shop/fast",
	//         "interface": "net1",
	//         "ips": [
	//             "10.1.2.3"
	//         ],
	//         "mtu": 1500,
	//         "dns": {}
	//     }
	// ]
}
