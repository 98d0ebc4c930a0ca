"""What only an Ascend platform needs: checking an installation, versions, ModelArts."""
