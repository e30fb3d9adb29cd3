"""The webhooks of the laptop's coordinator, as the API server is told of them: at an address of this machine.

Their failurePolicy is Ignore, so that everything can be tried while the coordinator is being restarted.
"""

from __future__ import annotations

from typing import Any

from coordinator.control.admission import path_of
from coordinator.control.webhook_identity import CONFIGURATIONS
from coordinator.plan.snapshot import CACHES, NAMESPACE_CACHES


def webhook_configuration(port: int) -> dict[str, Any]:
    """Without `caBundle`, which the coordinator writes."""
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": CONFIGURATIONS[0]},
        "webhooks": [
            {
                "name": f"{resource.kind.lower()}.kserve-webhook-server.validator",
                "clientConfig": {"url": f"https://127.0.0.1:{port}{path_of(resource)}"},
                "rules": [
                    {
                        "apiGroups": [resource.group],
                        "apiVersions": [resource.version],
                        "operations": ["CREATE", "UPDATE", "DELETE"],
                        "resources": [resource.plural],
                    }
                ],
                "failurePolicy": "Ignore",
                "sideEffects": "None",
                "admissionReviewVersions": ["v1", "v1beta1"],
            }
            for resource in (CACHES, NAMESPACE_CACHES)
        ],
    }
