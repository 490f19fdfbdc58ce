// Package vm boots a small virtual machine and runs programs in it, for tests that need
// a kernel with hardware that the host does not have: SR-IOV functions, NUMA nodes, an
// IOMMU.
//
// Three calls are all it takes:
//
//	software, err := vm.Install(ctx, os.Stderr)            // once, about 20 s
//	machine, err := vm.Boot(ctx, software, vm.Config{...}) // about 15 s
//	status, err := machine.Run(ctx, vm.Command{Args: []string{"/opt/lab/test", "-test.v"}, Stdout: os.Stdout})
//
// [Install] takes QEMU and a kernel from the distribution's packages and unpacks them
// into the user's cache; it needs no root and installs nothing. [Boot] builds an
// initramfs from the requested kernel modules, our own init program (package guestinit)
// and the caller's files, and starts QEMU with it. There is no shell script, and no
// disk unless [Config].Disk asks for one. [Machine.Run] runs a program as root in the
// guest with its streams connected over a virtio serial port (package wire); several
// programs can run at once. The processor is emulated, so no /dev/kvm is needed; the
// guest is some ten times slower than the host.
//
// # A machine that fails and comes back
//
// A guest with a disk can be stopped at any moment and booted again, to test what
// becomes of the state on the disk:
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
//     carrier, and nothing else shows it. [Boot] refuses more than [MaxMemory].
//   - The names of network devices follow the order of probing. Tell functions
//     apart by PCI address, which the configuration fixes.
//   - When a network namespace ends, its physical devices and VFs return to the host
//     under the names that they had inside.
package vm
