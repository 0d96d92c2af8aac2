"""A stand-in for a Kubernetes cluster, which cannot be had on one machine.

`api.py` is an API server, `controllers.py` what makes pods of Jobs, JobSets and TrainJobs, `pods.py` runs those as
processes of this machine. What they do follows what was read off a real 1.36 cluster, and for JobSet 0.10 and Kubeflow's
Trainer 2.2 their published sources and documentation:

* objects get a uid, a resourceVersion and a creation time; a second one of a name is refused with 409; manifests are
  validated against the published schemas (`kubernetes-validate`, strict; for JobSets and TrainJobs `kubeflow-trainer-api`),
  names by their length, and refused with 422; `dryRun=All` does all that and keeps nothing; lists take label selectors;
  watches begin at a resourceVersion, and one that is too old is answered with 410;
* deleting a Job without a propagation policy leaves its pods; with `Background` they get SIGTERM, and SIGKILL after
  their grace period, and what it owns goes; deleting a pod is no disruption, evicting one is (`DisruptionTarget`);
* a pod that ends is judged by `podFailurePolicy`, rule by rule, else counted against `backoffLimit`, or that of its
  index; one for each index that has not ended, `parallelism` at once; a suspended Job has none; `activeDeadlineSeconds`
  ends one;
* a JobSet makes a Service and Jobs; when one of those fails its failure policy decides, by reason and message, whether
  all begin again, and whether that is counted; a TrainJob is made a JobSet of by its runtime;
* quotas of pods and what they ask for are held against pods when they are made: a Job then waits, and an event says why;
* there is one node, without labels; an image from `nowhere/` cannot be had: such pods stay pending, and say why;
* where there is bubblewrap, a pod has namespaces of its own: its process is number 1, as the user that its security
  context says and with no rights, its root is read-only, and of disks it sees to write to what it mounts;
* a pod's environment: `env`, the Secrets of `envFrom`, and `JOB_COMPLETION_INDEX`. The name of a pod behind a headless
  Service becomes this machine's address, if the Service is there.

What only a real cluster can show: images, real volumes, seccomp, resources and scheduling, real names and networks,
admission by Kueue and by webhooks (JobSet's, Trainer's), the true back-off between replaced pods (10 s and more; here
0.2 s), rights (RBAC). For those the same tests run against one: see `tests/integration/test_kubernetes.py`.
"""
