"""What goes into a checkpoint's folder beside weights and processor, so that others can load it.

The factory itself runs none of it but the MLLM type's prompts and inputs (bge_vl_prompts, bge_vl_inputs): there and
here they are the same lines.
"""
