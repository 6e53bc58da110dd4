"""Which drives train and which judge; and the guard against judging a model on drives that it has seen.

Sources: the published scripts of the PON labels and of the nuScenes development kit. "pon" shares no street between its
parts; "official" does, so that its scores are higher.
"""

from collections.abc import Collection, Iterable
from typing import Literal

from featherweight.errors import ConfigError, did_you_mean

Part = Literal["train", "val"]

_SCENES = {
    ("pon", "train"): """
        2-9 12-19 21-36 39 42-52 55-76 92-110 120 123-135 138 149-151 154-155 157-159 161-168 170-183 185 187-188
        190-196 199-200 202-204 206-214 218-222 224-264 268 270-278 283-306 315-318 321 323-324 328-332 344-346 349-365
        367 370-377 379-386 388 399-403 405-408 420-459 461-465 467-469 471-472 474-480 499-502 504-515 517-524 552-555
        559-565 584-600 625-627 629-630 632-640 652-679 681 683-689 695-698 700-701 703-719 726-728 730-731 733-738
        780-784 786-787 789-792 802 806 808-813 815-817 819-822 847-856 858 860-866 868-873 875-878 880 882-909 916-917
        921-923 925-931 945 947 949 952-953 955-961 966-969 971-972 975-984 988-992 994-1001 1004-1015 1019-1025
        1044-1054 1064-1102 1104-1110
    """,
    ("pon", "val"): """
        1 10-11 20 38 41 53-54 121-122 139 152 160 184 269 347-348 366 368-369 378 389-398 411-419 525-539 541-546
        556-558 566 568 570-578 580 582-583 642-651 739-741 744 746-747 749-752 757-765 767-771 775 777-778 794-800
        803-804 911-915 919-920 924 962-963 1002-1003 1016-1018 1055-1063
    """,
    ("pon", "calibration"): """
        2 7 26 58 94 105 108 133 166 171 190-191 194 206 231 251 260 283 287 294 296 302 321 344 363 429 584 596 635 639
        668 710 735 782 789 791 811 815 847 852 866 876 885 900 909 956 1091 1100 1107 1110
    """,
    ("official", "train"): """
        1-2 4-11 19-34 41-76 120-135 138-139 149-152 154-155 157-168 170-185 187-188 190-196 199-200 202-204 206-214
        218-220 222 224-264 283-306 315-318 321 323-324 328 347-386 388-403 405-408 410-459 461-465 467-469 471-472
        474-480 499-502 504-515 517-518 525-539 541-546 566 568 570-578 580 582-600 639-679 681 683-689 695-698 700-701
        703-719 726-728 730-731 733-741 744 746-747 749-752 757-765 767-769 786-787 789-792 803-806 808-813 815-817
        819-822 847-856 858 860-866 868-873 875-878 880 882-903 945 947 949 952-953 955-961 975-984 988-992 994-1025
        1044-1058 1074-1102 1104-1110
    """,
    ("official", "val"): """
        3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 632-638 770-771 775
        777-778 780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 1059-1073
    """,
    ("official", "mini_train"): """
        61 553 655 757 796 1077 1094 1100
    """,
    ("official", "mini_val"): """
        103 916
    """,
}
"""Numbers of nuScenes scenes, with ranges; a part of "official" named mini_ holds those of the small download."""

_LOGS = {
    "train": """
        26d141ec-f952-3908-b4cc-ae359377424e 10b8dee6-778f-33e4-a946-d842d2d9c3d7 273c1883-673a-36bf-b124-88311b1a80be
        f3fb839e-0aa2-342b-81c3-312b80be44f9 a073e840-6319-3f0b-843e-f6dccdcc7b77 c6911883-1843-3727-8eaa-41dc8cda8993
        dcdcd8b3-0ba1-3218-b2ea-7bb965aad3f0 043aeba7-14e5-3cde-8a5c-639389b6d3a6 230970eb-dc2e-3133-b252-ff3c6f5d4284
        b3def699-884b-3c9e-87e1-1ab76c618e0b e17eed4f-3ffd-3532-ab89-41a3f24cf226 8a15674a-ae5c-38e2-bc4b-f4156d384072
        11953248-1195-1195-1195-511954366464 3d20ae25-5b29-320d-8bae-f03e9dc177b9 10b3a1d8-e56c-38be-aaf7-ef2f862a5c4e
        02cf0ce1-699a-373b-86c0-eb6fd5f4697a 08a8b7f0-c317-3bdb-b3dc-b7c9b6d033e2 15c802a9-0f0e-3c87-b516-a3fa02f1ecb0
        0ef28d5c-ae34-370b-99e7-6709e1c4b929 22160544-2216-2216-2216-722161741824 38b2c7ef-069b-3d9d-bbeb-8847b8c89fb6
        45753856-4575-4575-4575-345754906624 53037376-5303-5303-5303-553038557184 5c251c22-11b2-3278-835c-0cf3cdee3f44
        74750688-7475-7475-7475-474752397312 75756160-7575-7575-7575-675757273088 bae67a44-0f30-30c1-8999-06fc1c7ab80a
        e8ce69b2-36ab-38e8-87a4-b9e20fee7fd2 ebe7a98b-d383-343b-96d6-9e681e2c6a36 f0826a9f-f46e-3c27-97af-87a77f7899cd
        fa0b626f-03df-35a0-8447-021088814b8b 10f92308-e06e-3725-a302-4b09e6e790ad 29789600-2979-2979-2979-429790834688
        6162d72f-2990-3a30-9bba-19bbd882985c 649750f3-0163-34eb-a102-7aaf5384eaec 6c739f57-96d0-33e6-972d-af29cc527e1f
        95731808-9573-9573-9573-295732883456 a6cab660-f086-3e2a-8ad9-7144f93f5b68 aebe6aaa-6a95-39e6-9a8d-06103141fcde
        af706af1-a226-3f6f-8d65-b1f4b9457c48 e9bb51af-1112-34c2-be3e-7ebe826649b4 ff78e1a3-6deb-34a4-9a1f-b85e34980f06
        2bc6a872-9979-3493-82eb-fb55407473c9 2c07fcda-6671-3ac0-ac23-4a232e0e031e 49d66e75-3ce6-316b-b589-f659c7ef5e6d
        91326240-9132-9132-9132-591327440896 5ab2697b-6e3e-3454-a36a-aba2c6f27818 e9a96218-365b-3ecd-a800-ed2c4c306c78
        cb0cba51-dfaf-34e9-a0c2-d931404c3dd8 b1ca08f1-24b0-3c39-ba4e-d5a92868462c 1d676737-4110-3f7e-bec0-0c90f74c248f
        da734d26-8229-383f-b685-8086e58d1e05 cd5bb988-092e-396c-8f33-e30969c98535 f9fa3960-537f-3151-a1a3-37a9c0d6d7f7
        aeb73d7a-8257-3225-972e-99307b3a5cb0 39556000-3955-3955-3955-039557148672 c9d6ebeb-be15-3df8-b6f1-5575bea8e6b9
        5f317f5f-3ce9-355b-acf9-386a8c682252 64724064-6472-6472-6472-764725145600 cd64733a-dd8a-3bdf-b46a-b7144226168a
        6db21fda-80cd-3f85-b4a7-0aadeb14724d f1008c18-e76e-3c24-adcc-da9858fac145 00c561b9-2057-358d-82c6-5b06d76cebcf
        cb762bb1-7ce1-3ba5-b53d-13c159b532c8 2d12da1d-5238-3870-bfbc-b281d5e8c1a1
    """,
    "val": """
        6f153f9c-edc5-389f-ac6f-40705c30d97e 25952736-2595-2595-2595-225953853440 88538208-8853-8853-8853-388539396096
        84c35ea7-1a99-3a0c-a3ea-c5915d68acbc 64c12551-adb9-36e3-a0c1-e43a0e9f3845 3138907e-1f8a-362f-8f3d-773f795a0d01
        4137e94a-c5da-38bd-ad06-6d57b24bccd0 53213cf0-540b-3b5a-9900-d24d1d41bda0 577ea60d-7cc0-34a4-a8ff-0401e5ab9c62
        d60558d2-d1aa-34ee-a902-e061e346e02a fb471bd6-7c81-3d93-ad12-ac54a28beb84 52af191b-ba56-326c-b569-e37790db40f3
        919be600-da69-3f09-b0fd-f42f7eb2e097 99c45b6e-6fc7-39b8-80d7-727c485fb561 9da4ca63-f524-3b38-8c8b-624f17518574
        ba067318-0d89-34b5-b577-b171b1a4212b cd38ac0b-c5a6-3743-a148-f4f7b804ed17 d4d9e91f-0f8e-334d-bd0e-0d062467308a
        de777454-df62-3d5a-a1ce-2edb5e5d4922 70d2aea5-dbeb-333d-b21e-76a7f2f1ba1c 033669d3-3d6b-3d3d-bd93-7985d86653ea
        7d37fc6b-1028-3f6f-b980-adb5fa73021e 33737504-3373-3373-3373-633738571776 85bc130b-97ae-37fb-a129-4fc07c80cca7
    """,
}


def sequences_of(split: str, part: str, *, mini: bool = False) -> frozenset[str]:
    """Return the names of the drives of a published split.

    Args:
        split: "pon" or "official" (nuScenes), or "argoverse1".
        part: "train", "val", or "calibration" (of "pon", a part of its training drives).
        mini: the parts of the small download instead of the whole; only "official" has its own.
    Raises:
        ConfigError: if there is no such split or part.
    Example:
        >>> len(sequences_of("pon", "train")), len(sequences_of("pon", "val"))
        (698, 148)
    """
    if split == "argoverse1" and part in _LOGS:
        return frozenset(_LOGS[part].split())
    wanted = (split, f"mini_{part}") if mini and split == "official" else (split, part)
    if wanted not in _SCENES:
        known = sorted({name for name, _ in _SCENES} | {"argoverse1"})
        raise ConfigError(
            f"sequences_of: split='{split}', part='{part}' is not published; expected one of {', '.join(known)} with "
            f"train or val. {did_you_mean(split, known)}"
        )
    return frozenset(f"scene-{number:04d}" for number in _numbers(_SCENES[wanted].split()))


def check_no_leak(trained_on: Collection[str], judged_on: Collection[str], *, where: str) -> None:
    """Refuse to judge a model on drives with which it was trained.

    Raises:
        ConfigError: with the number of drives in both.
    """
    both = sorted(set(trained_on) & set(judged_on))
    if both:
        raise ConfigError(
            f"{where}: {len(both)} of {len(set(judged_on))} drives ({', '.join(both[:3])}, ...) were used in training, "
            "so the score would be too good; expected drives that the model has never seen. Judge on the split that "
            "belongs to its training, or state `allow_leak=true` and say so beside the number."
        )


def _numbers(ranges: Iterable[str]) -> Iterable[int]:
    for text in ranges:
        first, _, last = text.partition("-")
        yield from range(int(first), int(last or first) + 1)
