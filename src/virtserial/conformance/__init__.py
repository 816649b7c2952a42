"""Does a virtio console device do as virtio 1.3 says, and survive a driver that does not?

| file | subject |
|---|---|
| steps.py, driver.py, packed_driver.py | what a driver does, in the specification's words; who does it to a `Machine` |
| ring_cases.py, device_cases.py, packed_cases.py, legacy_cases.py, cases.py | the hostile cases, as data |
| vfio_user_vmm.py, vhost_user_vmm.py, qemu_machine.py | machines: VMMs on sockets; QEMU's own device by qtest |
| check.py, hostile.py, contract.py | what is checked: the hostile cases, and what a device owes to a good driver |
| targets.py, host_ends.py, registers.py | devices that somebody else may have built, and their hosts |
| driver_contract.py, guest_target.py | the driver of a Linux guest that a command reaches |
| report.py | results as a table, TAP and JUnit's XML |
| processes.py | what devices in processes have: a folder, hosts, a monitor |

This project's own tests play the same cases (testing/hostile, tests/hostile).
"""
