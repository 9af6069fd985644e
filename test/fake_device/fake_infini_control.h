/* Control and bookkeeping of the fake accelerator. Exported by the fake libinfinirt.so; find the functions with dlsym
 * (or ctypes). All are safe to call from any thread. */
#ifndef FAKE_INFINI_CONTROL_H
#define FAKE_INFINI_CONTROL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A counter by name; 0 for names never seen.
 *   live.device live.host live.stream live.event live.handle live.descriptor live.tensor live.comm   objects
 *   bytes.device peak.device bytes.host   bytes
 *   calls.<function>   calls of a function of InfiniCore since the last fake_infini_reset, failed ones included
 *   copies.h2d copies.d2h copies.d2d copies.h2h   copies handed to a stream
 *   copies.pageable   those of them whose host memory is not from infinirtMallocHost: real devices do them at once
 *   copies.hidden   copies from pageable memory that elementwise operators make before their kernels
 *   bytes.launched   bytes of the tensors of all operators launched
 *   graphs.captured graphs.launched graphs.nodes   graphs, their launches, and the launches that these stand for
 *   executed   tasks that streams have run
 *   violations   rules broken; fake_infini_violation tells them
 *   hits   injected failures that happened
 */
int64_t fake_infini_get(const char *name);

/* Text of a violation, NULL past the last. Valid until fake_infini_reset. */
const char *fake_infini_violation(size_t index);

/* Names of all calls since the last fake_infini_reset, in order and separated by newlines: returns the length and
 * copies at most `size` bytes including the final 0. */
size_t fake_infini_calls(char *buffer, size_t size);

/* Forgets counters, violations, calls and hits, not objects. */
void fake_infini_reset(void);

/* Lets the nth (1, 2, ...) coming call of a kind fail, once; n = 0 cancels, and revives a lost device.
 *   malloc malloc_host copy launch sync stream set_device count init handle tensor descriptor workspace comm
 *   capture instantiate   of graphs
 *   sync      a synchronisation: it waits and then fails
 *   execute   the nth task that a stream runs; the next synchronisation reports it
 *   link      from the nth all-reduce of a device on, all of them fail there
 *   lost      from the nth call of any kind on, every call fails and streams do nothing
 * "launch@1": of device 1 only, with any kind.
 * Returns 0, or -1 for an unknown kind. */
int fake_infini_fail(const char *kind, int64_t n);

#ifdef __cplusplus
}
#endif

#endif
