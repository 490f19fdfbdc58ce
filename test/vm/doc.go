// Package vm boots a small virtual machine and runs programs in it, for tests
// that need a kernel with hardware which the machine at hand does not have:
// SR-IOV functions, NUMA nodes, an IOMMU.
//
// Three calls are all there is to it:
//
//	software, err := vm.Install(ctx, os.Stderr)            // once, about 20 s
//	machine, err := vm.Boot(ctx, software, vm.Config{...}) // about 15 s
//	status, err := machine.Run(ctx, vm.Command{Args: []string{"/opt/lab/test", "-test.v"}, Stdout: os.Stdout})
//
// [Install] takes QEMU and a kernel from the distribution's packages and unpacks
// them into the user's cache; it needs no root and installs nothing. [Boot] makes
// an initramfs of the kernel's modules asked for, our own init program (package
// guestinit) and the caller's files, and starts QEMU on it; there is no shell
// script, and no disk unless [Config].Disk says so. [Machine.Run] runs a program
// as root in the guest with its streams connected, several at once if need be,
// over a virtio serial port (package wire). The processor is emulated, so no
// /dev/kvm is needed; the guest is some ten times slower than the host.
//
// # A machine that fails and comes back
//
// A guest with a disk can be ended at any moment and booted again, to see what is
// made of what it left there:
//
//	config.Disk = filepath.Join(dir, "disk")
//	machine, err := vm.Boot(ctx, software, config)
//	...                                            // programs that write below wire.Disk
//	err = machine.Kill()                           // the power fails
//	machine, err = vm.Boot(ctx, software, config)  // another boot ID, the same disk
//
// # Pitfalls
//
//   - On the q35 machine the emulated igb loses its interrupts when the guest has
//     memory above 4 GiB, which starts at 2816 MiB of memory: the VFs have no
//     carrier, and nothing else says so. [Boot] refuses more than [MaxMemory].
//   - The names of network devices follow the order of probing. Tell functions
//     apart by PCI address, which is fixed by the configuration.
//   - A network namespace that ends gives its physical devices and VFs back to the
//     host under the name they had inside.
package vm
