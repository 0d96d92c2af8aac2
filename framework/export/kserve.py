"""An InferenceService for KServe: the model behind an autoscaled endpoint on Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from framework.record.files import write_atomic

from .triton import Triton


@dataclass(frozen=True)
class KServe:
    """Writes `models/`, a Triton repository to be copied to `storage`, and `inference_service.yaml`, which serves it.

    Args:
        of: the target whose model is served: `onnx` or `openvino`.
        storage: where the cluster will find what is in `models/`: s3://, gs://, pvc://, https://.
        service_account: whose rights read the storage; None for the namespace's own.
        min_replicas, max_replicas: bounds of autoscaling; 0 lets it sleep.
        resources: of a replica.
    """

    storage: str
    of: str = "onnx"
    service_account: str | None = None
    min_replicas: int = 1
    max_replicas: int = 3
    resources: Mapping[str, str] = field(default_factory=lambda: {"cpu": "1", "memory": "2Gi"})

    def write(self, package: Path, name: str, folder: Path) -> None:
        (folder / "models").mkdir()
        Triton(of=self.of).write(package, name, folder / "models")
        model = {
            "modelFormat": {"name": "triton", "version": "2"},
            "protocolVersion": "v2",
            "runtime": "kserve-tritonserver",
            "storageUri": self.storage,
            "resources": {"requests": dict(self.resources), "limits": dict(self.resources)},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "runAsNonRoot": True,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        }
        predictor = {"minReplicas": self.min_replicas, "maxReplicas": self.max_replicas, "model": model}
        if self.service_account:
            predictor["serviceAccountName"] = self.service_account
        manifest = {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:50]},
            "spec": {"predictor": predictor},
        }
        write_atomic(folder / "inference_service.yaml", yaml.safe_dump(manifest, sort_keys=False))
